"""The order of pictures and batches, a function of (seed, epoch) alone, and random numbers of a picture's own."""
import random
from contextlib import contextmanager
from hashlib import blake2b
from typing import Iterator, List, Sequence, Tuple

import numpy as np
import torch
from torch.utils.data import Sampler

__all__ = ['EpochBatches', 'sample_seed', 'seeded', 'evaluation_shard', 'training_shard']


def sample_seed(*key: int) -> int:
    """A seed of 63 bits from whole numbers such as (seed, epoch, index); near keys give unrelated seeds.

    >>> sample_seed(0, 1, 2) == sample_seed(0, 1, 2), sample_seed(0, 1, 2) == sample_seed(0, 2, 1)
    (True, False)
    """
    digest = blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, 'little') >> 1


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """A context in which `random`, numpy and torch (CPU) draw from `key` alone, and then go on as before.

    timm's augmentations draw from all three, and in the main process a training run owns their state.
    """
    seed = sample_seed(*key)
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2 ** 32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)


def training_shard(count: int, batch_size: int, seed: int, epoch: int, rank: int, world_size: int) -> List[List[int]]:
    """The batches of one rank: the ranks' k-th batches together are the k-th batch of one process with the joint size.

    All ranks have equally many full batches. The rest of the permutation, less than one joint batch, sits this epoch
    out.

    >>> shards = [training_shard(10, batch_size=2, seed=0, epoch=0, rank=r, world_size=2) for r in (0, 1)]
    >>> [len(batches) for batches in shards]
    [2, 2]
    """
    joint = batch_size * world_size
    generator = torch.Generator().manual_seed(sample_seed(seed, epoch))
    order = torch.randperm(count, generator=generator)[:count // joint * joint]
    return order.view(-1, world_size, batch_size)[:, rank].tolist()


def evaluation_shard(count: int, batch_size: int, rank: int, world_size: int) -> List[List[int]]:
    """The batches of one rank, in order, each picture on exactly one rank: nothing is padded, so shards may be uneven.

    >>> evaluation_shard(5, batch_size=2, rank=0, world_size=2), evaluation_shard(5, batch_size=2, rank=1, world_size=2)
    ([[0, 2], [4]], [[1, 3]])
    """
    mine = range(rank, count, world_size)
    return [list(mine[start:start + batch_size]) for start in range(0, len(mine), batch_size)]


class EpochBatches(Sampler[List[Tuple[int, int]]]):
    """Batch sampler over (epoch, index) pairs: the epoch travels with the picture, so that workers may persist.

    Args:
        count: pictures in the data set.
        batch_size: of one rank.
        is_training: shuffled with equal shards, else in order with uneven ones.
        seed, rank, world_size: see `training_shard`.
    """

    def __init__(
            self,
            count: int,
            batch_size: int,
            is_training: bool,
            seed: int = 0,
            rank: int = 0,
            world_size: int = 1,
    ) -> None:
        self.count = count
        self.batch_size = batch_size
        self.is_training = is_training
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.start_batch = 0

    def batches(self) -> Sequence[List[int]]:
        """All batches of the epoch on this rank, as indices into the data set."""
        if self.is_training:
            return training_shard(self.count, self.batch_size, self.seed, self.epoch, self.rank, self.world_size)
        return evaluation_shard(self.count, self.batch_size, self.rank, self.world_size)

    def __len__(self) -> int:
        if self.is_training:
            return self.count // (self.batch_size * self.world_size)
        mine = len(range(self.rank, self.count, self.world_size))
        return -(-mine // self.batch_size)

    def __iter__(self) -> Iterator[List[Tuple[int, int]]]:
        # Decided now, not when it is asked for: a later set_epoch must not reach into a pass that is under way.
        epoch, batches = self.epoch, self.batches()[self.start_batch:]
        return ([(epoch, index) for index in batch] for batch in batches)
