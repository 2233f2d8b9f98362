"""Made-up results of the paper's runs: whole CSV files, every value of known arithmetic."""
import numpy as np

from benchmarks.presets import PRESETS
from benchmarks.runs import jobs, settings
from benchmarks.store import ACCURACY, CLASSES, EPOCHS, FEATURES, FILES, MASKS, NORMS, RIGHT, RUNS, packed

PICTURES = 400
ENVIRONMENT = dict(device='cpu (some processor)', dtype='bfloat16', threads='2', python='3.11', torch='2', timm='1',
                   rs_timm='0')
LAYERS = ['bn1', *(f'layer{stage}.{block}.bn{i}' for stage in (1, 2, 3, 4) for block in (0, 1) for i in (1, 2)),
          'layer2.0.downsample.1']


def top1(run, size, seed, largest, sets='own'):
    """Rises with the size; a kind of training, a seed and a way to interpolate add something of their own."""
    own = {'parallel': 1.5, 'rs_net': 2.5, 'shared_bn': -1., 'vanilla': 2.25, 'largest': 1.75, 'larger': 1.6,
           'multi_crop': 2., 'untouched': 0., 'recalibrated': 0.5, 'replaced': -2., 'bn': 4., 'full': 5.}
    gain = own.get(run, 0.) + dict(own=0., params=-0.25, affine=-0.5, nearest=-1.5, recalibrated=0.125, int8=-0.3)[sets]
    if '_lr' in run:
        gain = 0.1 * float(run.rpartition('_lr')[2])
    elif run.startswith(('individual_', 'crop30_individual_')):
        trained = int(run.rpartition('_')[2])
        gain -= 12. * abs(size / trained - 1) ** 1.5
    elif 'parallel_' in run:
        gain += 1.5 * (size / largest) ** 2 - 0.75
    return min(99., 60. + 25. * (size / largest) ** 0.5 * min(1., largest / size) + gain + 0.5 * int(seed))


def rights(run, size, seed, share):
    """Which of the pictures are right: some of them at random, as many as the share says."""
    generator = np.random.default_rng([ord(c) for c in f'{run}{size}{seed}'])
    order = np.argsort(np.arange(PICTURES) + generator.normal(0, 25, PICTURES))
    right = np.zeros(PICTURES, dtype=bool)
    right[order[:round(PICTURES * share / 100)]] = True
    return right


def write_job(folder, job, **changed):
    """All tables of a job.

    Args:
        folder: of the CSV files.
        job: what was run.
        changed: columns of the table of runs that are other than planned.
    """
    preset, name = job.preset, job.run.name
    recipe = job.run.recipe(preset, job.seed)
    trained = sorted(recipe.measured_sets(0), reverse=True)
    largest = preset.resolutions[0]
    every = sorted({*trained, *(preset.dense if job.run.dense else ())}, reverse=True)
    several = len(trained) > 1 and not recipe.shared_bn
    rows = []
    for size in every:
        kinds = ('own',) if size in trained or not several else ('params', 'affine', 'nearest', 'recalibrated')
        rows += [(sets, size, top1(name, size, job.seed, largest, sets)) for sets in kinds]
    if several:
        rows.append(('own', 'ensemble', top1(name, largest, job.seed, largest) + 0.75))
    if job.run.int8:
        rows += [('int8', size, top1(name, size, job.seed, largest, 'int8')) for size in trained]
    if recipe.task == 'segmentation':
        return _write_masks(folder, job, recipe, changed)
    ACCURACY.put(folder, job.key, [dict(sets=sets, resolution=size, top1=value, top5=50 + value / 2, loss=1., ece=2.)
                                    for sets, size, value in rows])
    RIGHT.put(folder, job.key, [
        dict(resolution=size, pictures=PICTURES, right=packed(rights(name, size, job.seed, value)))
        for sets, size, value in rows if sets == 'own' and size != 'ensemble'])
    if job.run.group == 'table3':
        FILES.put(folder, job.key, [dict(kind=kind, bytes=count) for kind, count in FILE_BYTES.items()])
    NORMS.put(folder, job.key, _norms(trained) if several else [])
    FEATURES.put(folder, job.key, _features(name, trained) if job.run.features else [])
    EPOCHS.put(folder, job.key, _epochs(recipe, job, several))
    _write_run(folder, job, recipe, changed)


def _write_run(folder, job, recipe, changed):
    RUNS.put(folder, job.key, [dict(
        dict(model=job.model, recipe=job.preset.recipe_name, settings=settings(recipe), epochs=recipe.epochs,
             parameters=11 * 2 ** 20, pictures=PICTURES, train_seconds=1800. + 60 * job.seed, measure_seconds=45.,
             commit='abcdef0123', **ENVIRONMENT), **changed)])


def _write_masks(folder, job, recipe, changed):
    """A network for segmentation: mean IoU as the top-1 of `top1`, less 30; the other two quantities above it."""
    sizes = job.preset.resolutions
    values = {size: top1(job.run.name, size, job.seed, sizes[0]) - 30 for size in sizes}
    if len(recipe.resolutions) > 1:
        values['ensemble'] = values[sizes[0]] + 1
    MASKS.put(folder, job.key, [dict(resolution=size, pixel_accuracy=value + 20, mean_accuracy=value + 10,
                                      mean_iou=value) for size, value in values.items()])
    CLASSES.put(folder, job.key, [
        dict(resolution=size, label=label, pixels=pixels,
             iou=(30. if job.run.name.startswith('individual_') else 10.) + 1 * job.seed)
        for size in values for label, pixels in (('sky', 300), ('pole', 100), ('road', 600))])
    _write_run(folder, job, recipe, changed)


FILE_BYTES = dict(float32=45_000_000, float16=22_500_000, packed=3_000_000)


def _norms(sizes):
    return [
        dict(layer=layer, resolution=size, weight=0.9 - 0.02 * depth + 0.001 * size,
             bias=-0.1 + 0.005 * depth + (0.0005 if depth % 3 else -0.0005) * size,
             running_mean=-0.2 + 0.01 * depth - 0.0005 * (size if depth % 2 else (size - sizes[1]) ** 2 / 20),
             running_var=0.5 + 0.002 * size / (depth + 1))
        for depth, layer in enumerate(LAYERS) for size in sizes]


GAPS = {('individual', 0): 0.2, ('individual', 1): 0.1, ('parallel', 0): 0.05, ('parallel', 1): 0.15}


def gap(run, smallest):
    """By how much the features of training crops are larger."""
    return GAPS[run.partition('_')[0], int(smallest)]


def _features(run, sizes):
    """Exponential; wider with training crops, and in a network of several sizes."""
    scale = 1.3 if run == 'parallel' else 1.
    ends = {sizes[0]: False, sizes[-1]: True} if len(sizes) > 1 else {sizes[0]: sizes[0] < 100}
    return [
        dict(resolution=size, crops=crops, share=share / 100,
             value=float(-scale * (factor + 1) * np.log(1.005 - share / 100)))
        for size, smallest in ends.items() for crops, factor in (('test', 0.), ('train', gap(run, smallest)))
        for share in range(101)]


def _epochs(recipe, job, several):
    count = len(recipe.resolutions)
    weights = np.linspace(2., 0., count) if several and recipe.mred in ('full', 'vanilla') else None
    rows = []
    for epoch in range(1, recipe.epochs + 1):
        share = np.exp(weights * epoch / recipe.epochs * (1 + 0.1 * job.seed)) if weights is not None else None
        for i, size in enumerate(recipe.resolutions):
            alpha = float('nan') if share is None else float(share[i] / share.sum())
            rows.append(dict(epoch=epoch, resolution=size, top1=50., loss=1., train_loss=1., alpha=alpha, seconds=220.))
    return rows


def write_preset(folder, preset, names=(), seed=None):
    """All planned jobs of a preset, or those of some runs or groups."""
    for job in jobs([preset], names, seed):
        assert job.preset is PRESETS[preset]
        write_job(folder, job)
