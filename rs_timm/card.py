"""The model card: README.md of a saved or pushed network, generated from what was measured."""
import re
from dataclasses import dataclass, field
from html import escape
from typing import List, Mapping, Optional

from huggingface_hub import EvalResult, ModelCardData
from torch import nn

from rs_timm.crops import crops_of
from rs_timm.layers import get_resolutions

__all__ = ['CardData', 'as_text', 'model_card']

_METRICS = {  # by what the network is for
    'classification': {'top1': 'Top-1', 'top5': 'Top-5'},
    'segmentation': {'pixel_accuracy': 'Pixel accuracy', 'mean_accuracy': 'Mean accuracy', 'mean_iou': 'Mean IoU'},
}
_HUB_METRICS = {'top1': 'accuracy', 'top5': 'accuracy', 'mean_iou': 'mean_iou'}  # ids of the hub; others keep our names
_PAPER = '''```bibtex
@inproceedings{wang2020resolution,
  title={Resolution Switchable Networks for Runtime Efficient Image Recognition},
  author={Wang, Yikai and Sun, Fuchun and Li, Duo and Yao, Anbang},
  booktitle={European Conference on Computer Vision (ECCV)},
  year={2020}
}
```'''


@dataclass(frozen=True)
class CardData:
    """The facts of a model card that the network itself does not tell; what is left out is printed as not known.

    >>> CardData(license='mit', results={224: {'top1': 71.0}}, dataset='ImageNet, validation split').results[224]
    {'top1': 71.0}

    Args:
        license: identifier as the hub knows it ('apache-2.0', 'mit'); it is never guessed.
        description: one paragraph: what the weights are and how they were made.
        results: resolution in pixels -> {'top1': percent, 'top5': percent}, or for segmentation 'pixel_accuracy',
            'mean_accuracy' and 'mean_iou'; as measured, any size, any of them.
        dataset: what `results` were measured on, for example 'Imagenette, validation split, 3925 pictures'.
        recipe: how the weights were trained (Markdown).

    Raises:
        ValueError: a result that is no percentage, or results without the data set that they were measured on.
    """

    license: Optional[str] = None
    description: Optional[str] = None
    results: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    dataset: Optional[str] = None
    recipe: Optional[str] = None

    def __post_init__(self) -> None:
        known = [name for metrics in _METRICS.values() for name in metrics]
        for resolution, figures in self.results.items():
            for name, value in figures.items():
                if name not in known or not 0 <= value <= 100:
                    raise ValueError(f'results[{resolution}] has {name}={value}: give {", ".join(known)}, in percent '
                                     '(0 to 100).')
        if self.results and not self.dataset:
            raise ValueError('results without a dataset: name what they were measured on, such as '
                             "dataset='Imagenette, validation split'.")


def model_card(
        model: nn.Module,
        data: CardData = CardData(),
        name: str = 'model',
        source: Optional[str] = None,
        base_model: Optional[str] = None,
) -> str:
    """The text of README.md: YAML for the hub, how to use the network, and its cost and accuracy per resolution.

    Nothing is invented: a figure that `data` lacks is printed as 'not measured', MAdds are counted on `model`.

    >>> import timm, rs_timm
    >>> model = timm.create_model('rs_resnet18', resolutions=(224, 96))
    >>> print(model_card(model, CardData(results={96: {'top1': 61.5}}, dataset='ImageNet')).split('## Resolutions')[1])
    <BLANKLINE>
    <BLANKLINE>
    Accuracy on ImageNet. One MAdd is one multiply-add of a convolution or linear layer, for one square image.
    <BLANKLINE>
    | Resolution | MAdds (M) | Top-1 (%) | Top-5 (%) |
    |---:|---:|---:|---:|
    | 224 | 1814.1 | not measured | not measured |
    | 96 | 333.6 | 61.5 | not measured |
    ...

    Args:
        model: a switchable network (unwrapped), made by timm.
        data: what the network itself cannot tell.
        name: heading.
        source: what `timm.create_model` takes to load it, 'hf-hub:user/name'; None: the folder of the card.
        base_model: hub repository that the weights were made from.
    """
    cfg = model.pretrained_cfg
    architecture = f"`{cfg['architecture']}`"
    stock = getattr(model, 'stock_architecture', None)
    crops = ', '.join(f'{crop:.3g} at {size} px' for size, crop in (crops_of(model) or {}).items())
    facts = {
        'Architecture': f"{architecture} (timm's `{stock}` with private BatchNorms)" if stock else architecture,
        'Resolutions': ', '.join(str(r) for r in get_resolutions(model)),
        'Classes': str(getattr(model, 'num_classes', 'not known')),
        'Parameters (M)': f'{sum(p.numel() for p in model.parameters()) / 1e6:.2f}',
        'Licence': as_text(data.license or 'not stated'),
        **({'Crops': crops} if crops else {}),
        **({'Weights made from': f'`{base_model}`'} if base_model else {}),
    }
    parts = [
        f'---\n{_front_matter(_task(model), data, name, base_model).to_yaml()}\n---',
        f'# {as_text(name)}',
        data.description or 'What these weights are and how they were made was not stated.',
        '\n'.join(f'- **{key}:** {value}' for key, value in facts.items()),
        '## Usage',
        _usage(model, source or f'local-dir:{name}'),
        '## Resolutions',
        _table(model, data),
    ]
    if data.recipe:
        parts += ['## Training', data.recipe]
    return '\n\n'.join([*parts, '## Citation', _PAPER]) + '\n'


def as_text(text: str) -> str:
    r"""`text` on one line of Markdown that shows it as it is: nothing in it is a link, a heading or HTML.

    >>> print(as_text('[x](http://y)\n# <b>'))
    \[x\](http://y) \# &lt;b&gt;
    """
    return re.sub(r'([\\`*\[\]#|~$])', r'\\\1', escape(' '.join(text.split()), quote=False))


def _task(model: nn.Module) -> str:
    return getattr(model, 'task', 'classification')  # type: ignore[return-value]


def _front_matter(task: str, data: CardData, name: str, base_model: Optional[str]) -> ModelCardData:
    """The YAML for the hub, with each measured figure as a result of its model index."""
    results = [
        EvalResult(
            task_type=f'image-{task}',
            dataset_type=re.sub(r'[^a-z0-9]+', '-', str(data.dataset).partition(',')[0].lower()).strip('-'),
            dataset_name=str(data.dataset),
            metric_type=_HUB_METRICS.get(metric, metric),
            metric_name=f'{_METRICS[task][metric]} at {resolution} px',
            metric_value=value,
            metric_args=dict(resolution=resolution),
        )
        for resolution, figures in sorted(data.results.items(), reverse=True)
        for metric, value in figures.items() if metric in _METRICS[task]
    ]
    return ModelCardData(
        tags=[f'image-{task}', 'timm', 'rs_timm', 'resolution-switchable'],
        pipeline_tag=f'image-{task}',
        library_name='timm',
        license=data.license,
        base_model=base_model,
        model_name=name if results else None,
        eval_results=results or None,
    )


def _usage(model: nn.Module, source: str) -> str:
    resolutions = get_resolutions(model)
    resolution = resolutions[len(resolutions) // 2]
    channels = model.pretrained_cfg['input_size'][0]
    mode = {1: 'L', 4: 'RGBA'}.get(channels, 'RGB')
    shape = '  # [1, classes, height / 4, width / 4]' if _task(model) == 'segmentation' else ''
    size = f'({channels}, resolution, resolution)'
    transform = 'transform = rs_timm.data.image_transform(rs_timm.data.data_config(model), resolution)'
    if not crops_of(model):  # timm knows one crop
        transform = (f'config = dict(timm.data.resolve_model_data_config(model), input_size={size})\n'
                     'transform = timm.data.create_transform(**config)')
    return f'''The network needs the package `rs_timm`: importing it registers the architecture with timm.

```python
import timm
import torch
from PIL import Image

import rs_timm  # registers the rs_* models

model = timm.create_model({source!r}, pretrained=True).eval()

resolution = {resolution}  # private BatchNorms for {', '.join(str(r) for r in resolutions)}; others are interpolated
{transform}
image = transform(Image.open('photo.jpg').convert({mode!r}))  # [{channels}, {resolution}, {resolution}]

rs_timm.set_resolution(model, resolution)  # or None, the default: follow the size of the input
with torch.inference_mode():
    probabilities = model(image[None]).softmax(1){shape}
```'''


def _count(model: nn.Module, resolution: int) -> str:
    """The MAdds in millions, or that a size is too small for this network."""
    from rs_timm.analysis import madds

    try:
        return f'{madds(model, resolution) / 1e6:.1f}'
    except (RuntimeError, ValueError):
        return 'not counted'


def _table(model: nn.Module, data: CardData) -> str:
    measured_on = f'Accuracy on {data.dataset}. ' if data.results else ''
    metrics = _METRICS[_task(model)]
    lines: List[str] = [
        f'{measured_on}One MAdd is one multiply-add of a convolution or linear layer, for one square image.',
        '',
        f"| Resolution | MAdds (M) | {' | '.join(f'{title} (%)' for title in metrics.values())} |",
        '|---:|---:|' + '---:|' * len(metrics),
    ]
    private = get_resolutions(model)
    for resolution in sorted({*private, *data.results}, reverse=True):
        figures = data.results.get(resolution, {})
        cells = [f'{figures[key]:.1f}' if key in figures else 'not measured' for key in metrics]
        label = str(resolution) if resolution in private else f'{resolution} (interpolated)'
        lines.append(f"| {label} | {_count(model, resolution)} | {' | '.join(cells)} |")
    return '\n'.join(lines)
