"""A few trials of benchmarks/soak.py for each kind of file: damage is harmless, or an error that names the file."""
import pytest

from benchmarks import soak

TRIALS = 8  # of each kind
# bytes that nobody has a digest of: other answers cannot be told from right ones
WITHOUT_DIGEST = ()


@pytest.fixture(scope='module')
def bench(tmp_path_factory):
    return soak.Bench(tmp_path_factory.mktemp('bench'))


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('kind', [kind for kind in soak.KINDS if kind != 'special'])
def test_damaged_files(bench, kind):
    good = {'clear', 'right', *(['wrong'] if kind in WITHOUT_DIGEST else [])}
    found = {number: soak.attempt(kind, number, 1, bench) for number in range(TRIALS)}
    assert not {number: outcome for number, outcome in found.items() if outcome.kind not in good}


def test_damage_is_the_same_for_the_same_seed():
    def damaged(seed):
        rng = soak.random.Random(seed)
        return [soak.damaged_bytes(bytes(range(256)), rng) for _ in range(20)]

    assert damaged(3) == damaged(3) != damaged(4)


def test_a_worker_that_hangs_or_dies_is_replaced(monkeypatch):
    """Trials after it are made, and none twice."""
    monkeypatch.setattr(soak, 'LIMIT', 2.)
    found = soak.damage('self', 0, 0, 4)
    assert [(number, outcome.kind) for number, outcome in found] == [
        (0, 'right'), (1, 'hang'), (2, 'raw'), (3, 'clear')]
