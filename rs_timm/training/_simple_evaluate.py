import torch
import torch.nn.functional as F


@torch.inference_mode()
def evaluate(model, loader, resolutions, ensemble_alpha=None):
    model.eval()
    sums = {}
    for images, target in loader:
        logits = {r: model(images[r]).float() for r in resolutions}
        if ensemble_alpha:
            logits['ensemble'] = sum(ensemble_alpha[r] * logits[r] for r in resolutions)
        for key, z in logits.items():
            hit = z.topk(min(5, z.shape[1]), dim=1).indices == target[:, None]
            values = [hit[:, :1].sum().item(), hit.sum().item(), F.cross_entropy(z, target, reduction='sum').item()]
            old = sums.setdefault(key, [0., 0., 0., 0])
            sums[key] = [a + b for a, b in zip(old, [*values, len(target)])]
    return {k: dict(top1=100 * a / n, top5=100 * b / n, loss=c / n) for k, (a, b, c, n) in sums.items()}
