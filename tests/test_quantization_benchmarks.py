"""The benchmarks of quantised networks: files and steps are measured, and the documents show what was measured."""
from benchmarks import environment, quantization_cost, quantization_size, training_sections
from benchmarks.store import read


def test_sizes_are_those_of_files(tmp_path, monkeypatch):
    monkeypatch.setattr('sys.argv', ['x', '--models', 'rs_resnet18_w2a32', '--classes', '10',
                                     '--out', str(tmp_path / 'quantization_size.csv')])
    quantization_size.main()
    rows = {row['head']: row for row in read(tmp_path / 'quantization_size.csv')}
    sizes = {head: int(row['packed_bytes']) for head, row in rows.items()}
    assert sizes['int8'] < sizes['float16'] < sizes['float32'] and 12 * sizes['int8'] < int(rows['int8']['full_bytes'])
    assert int(rows['int8']['separate_packed_bytes']) > 4 * sizes['int8']
    monkeypatch.setattr(environment, 'RESULTS', tmp_path)
    text = training_sections.quantised_size_section()
    assert f"| {sizes['int8'] / 1e6:.2f} |" in text and text.count('rs_resnet18_w2a32') == 1


def test_a_step_is_timed_against_the_same_network(tmp_path, monkeypatch):
    monkeypatch.setattr('sys.argv', ['x', '--precisions', 'float32', '--sizes', '40', '32', '--batch', '2', '--rounds',
                                     '1', '--out', str(tmp_path / 'quantization_cost.csv')])
    quantization_cost.main()
    monkeypatch.setattr(environment, 'RESULTS', tmp_path)
    text = training_sections.quantised_step_section()
    for name, against in {'rs_resnet18_w2a32': 'resnet18', 'rs_resnet18_w2a2': 'resnetv2_18'}.items():
        line, = [line for line in text.splitlines() if f'`{name}`' in line]
        ratio = float(line.split('|')[-2])
        assert f'{against}, switchable' in line and ratio > 0
    assert 'Batch 2 at 40, 32 px, medians of 1 rounds' in text
