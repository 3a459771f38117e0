"""Configs that are data, in YAML and JSON, run nothing when they are read."""

import pytest

from mmnorm.engine import parse_config


@pytest.mark.parametrize(
    ('text', 'tag'),
    [
        ('model: 1\na: !!python/object/apply:builtins.open [ran, w]', 'python/object/apply:builtins.open'),
        ('model: 1\na: !!python/object/new:builtins.open [ran, w]', 'python/object/new:builtins.open'),
        ('model: 1\na: !!python/name:os.system', 'python/name:os.system'),
        ('model: 1\na: !!python/module:os', 'python/module:os'),
        ('model: 1\na: !<tag:yaml.org,2002:%1b[31m> b', r'\x1b[31m'),
        ('_base_:\n    - !!python/object/apply:builtins.open [ran, w]', 'python/object/apply:builtins.open'),
        ('_base_: ./\nother: !mine 1', '!mine'),
    ],
)
@pytest.mark.parametrize('name', ['c.yaml', 'c.yml', 'inherits.py'])
def test_tags_are_refused(tmp_path, monkeypatch, text, tag, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text(text)
    if name == 'inherits.py':
        (tmp_path / 'c.yaml').write_text(text)
        (tmp_path / name).write_text("_base_ = 'c.yaml'")
    with pytest.raises(ValueError) as refused:
        parse_config(name)
    assert str(refused.value) == (
        f"{name} cannot be read as a config: YAML with the tag '{tag}' is not plain data, and nothing else is taken "
        'from it; what has to be computed belongs into a config in Python'
    )
    assert not (tmp_path / 'ran').exists()


def test_plain_values_and_tuples_are_read(tmp_path):
    (tmp_path / 'c.yaml').write_text('a: !!python/tuple [1, {b: [.inf, null]}]\nc: 1.0e-3')
    config = parse_config(tmp_path / 'c.yaml').to_dict()
    assert config == dict(a=(1, dict(b=[float('inf'), None])), c=1e-3)
    parse_config(tmp_path / 'c.yaml').dump(tmp_path / 'dumped.yaml')
    assert parse_config(tmp_path / 'dumped.yaml').to_dict() == config
