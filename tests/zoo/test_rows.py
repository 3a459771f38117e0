"""No row of the papers' tables is missing, every config has an entry, and the entries are what other tools read."""

import json
import shlex
import subprocess
from collections import Counter
from pathlib import Path

import modelindex
import pytest
import yaml
from mmengine.config import Config

from mmnorm.cli.train import describe_batch
from mmnorm.zoo import Model, find_model, load_zoo
from mmnorm.zoo.rows import METAFILE, METAFILES, load_rows_without_config
from tests.processes import command, environment

ROOT = Path(__file__).parents[2]
# Rows of the papers' tables, counted by hand. In Table 2 of evalnorm every training has two rows, EMA and EN, and those
# of setting (c) are here once for each of its two readings. In classification a row is a figure, or a top-1 with its
# top-5: Table 1 of xbn has 5 of them, Table 2 21 (and 3 dashes), sn's Table II 27 with a dash.
TABLES = {
    'xbn Table 1': 5,
    'xbn Table 2': 21,
    'xbn Table 3': 2 * 4,
    'xbn Table A1': 2 * 2 * 4,
    'xbn Table A2': 6 * 2,
    'xbn Table A3': 2 * 2,
    'xbn Figure 7': 8,  # D2, D4, D8 and Full of GN and IN, and IN in every block; GN's first two are in Table 2
    'xbn Figure A12': 3 * 2 * 2,
    'evalnorm Table 1': 6 * 5,
    # Of the sizes that the text names: EN, EMA and Renorm on two data sets; two rules; three depths and three
    # widths beside 20 layers of width 1
    'evalnorm Figure 2': 4 * 3 * 2,
    'evalnorm Figure 4': 4 * 2,
    'evalnorm Figure 5': 7 * 2 * 2,
    'sn Table II': 3 * 9 - 1,
    'sn Table III': 2 * 2 + 3 * 2,
    'sn Section 4.1.3': 5,  # of norms that no table has: IN, LN and BRN, and two of BKN
    'rbn Table 1': 18,
    'rbn Table 2': 4 * 2,
    'rbn Table 3': 8,
    'rbn Table 4': 6 + 5,
    'bgn Table 1': 2 * 10,
    'bgn Table 2': 7 * 7,
    'xbn Table 4': 12,
    'xbn Table 5': 6,
    'xbn Table 6': 9,
    'evalnorm Table 2': 30,
    'sn Table IV': 7,
    'sn Table V': 5,
    'sn Table VI': 6,
    'sn Table VII': 16,
    'sn Table VIII': 8,
    'rbn Table 5': 4,
    'rbn Table 6': 4,
    'rbn Table 7': 4,
}


@pytest.fixture(scope='module')
def zoo():
    return load_zoo()


def test_rows_of_each_table(zoo):
    rows = [row for model in (*zoo.values(), *load_rows_without_config()) for row in model.published]
    assert Counter(row.table.split(',')[0] for row in rows) == TABLES


def test_rows_without_config(zoo):
    """Those whose norm mmnorm does not have (BRN: in batches smaller than SGD's), or whose network no host has."""
    rows = load_rows_without_config()
    assert Counter(row.norm for row in rows) == dict(BKN=1, BN=1, RBN=4, BRN=6, EN=6)
    assert all(row.note.startswith('No config') and not row.name for row in rows)
    assert {row.backbone for row in rows if row.norm in ('BN', 'RBN')} == {'ResNeXt-29'}
    assert {row.backbone for row in rows if row.norm == 'EN'} == {'R-56', 'R-110', 'R-254'}


def test_no_two_rows_of_a_table_are_called_the_same(zoo):
    rows = Counter((row.table, row.row) for model in zoo.values() for row in model.published if model.training)
    assert set(rows.values()) == {1}


def test_rows_that_no_table_has(zoo):
    """DeepLabV3, V3+ and what the issue of the zoo adds to the tables."""
    real = {name: model for name, model in zoo.items() if model.data != 'digits' and model.task != 'classification'}
    more = Counter((model.paper, model.task) for model in real.values() if not model.published)
    assert more['bgn', 'object detection'] == more['bgn', 'instance segmentation'] == 3
    deeplabs = [
        (name.split('_')[0], model.data, model.norm)
        for name, model in real.items()
        if name.startswith('deeplabv3') and '_r50_' in name
    ]
    assert len(set(deeplabs)) == len(deeplabs) == 16
    for part in ('r50_gw', 'r50_in', 'r50_d2', 'r50_d4', 'r50_p1', 'r50_p3', 'r50_full', 'ibn_r50', 'ibn_r101'):
        assert f'faster_rcnn_{part}' in zoo or f'faster_rcnn_xbn_{part}' in zoo
    for part in ('mobilenetv2', 'shufflenetv2'):
        assert len([model for name, model in real.items() if part in name and model.norm.startswith('XBN')]) == 2


def test_every_config_has_an_entry(zoo):
    files = {path.relative_to(ROOT).as_posix() for path in ROOT.glob('configs/**/*.py') if '_base_' not in path.parts}
    assert files == {model.config for model in zoo.values()}
    assert all(Path(model.config).stem == name for name, model in zoo.items())


def test_what_pretrained_weights_are(zoo):
    for model in zoo.values():
        if model.mode == 'scratch':  # of which one may be given the ratios that SN has from the start
            assert not model.pretrained or model.pretrained['Instead'].startswith('the ratios alone'), model.name
        else:
            known = {'Licence', 'File'} if model.pretrained['Source'] != 'none exists' else {'Instead'}
            assert known <= model.pretrained.keys(), model.name


def test_pretrainings_that_nobody_released(zoo):
    """Every row that starts from such says which config makes it; that this fits, the check of all rows says."""
    missing = {
        model.name: model.pretrained.get('From')
        for model in zoo.values()
        if model.task != 'classification' and model.data != 'digits' and model.pretrained.get('Source') == 'none exists'
    }
    assert len(missing) == 14
    configs = {model.config for model in zoo.values() if model.task == 'classification'}
    assert configs.issuperset(missing.values())


def test_figures_are_of_the_task(zoo):
    wanted = {
        'object detection': 'AP^bbox',
        'instance segmentation': 'AP^mask',
        'panoptic segmentation': 'PQ',
        'semantic segmentation': 'mIoU',
        'classification': 'top-1',
    }
    for model in (*zoo.values(), *load_rows_without_config()):
        for row in model.published:
            main, names = wanted[model.task], {name.removesuffix(' error') for name in row.metrics}
            assert main in names or ('Figure' in row.table and 'has no figure' in model.note), row
            assert all(1 < value < 100 for value in row.metrics.values()), row


def test_mim_reads_it(zoo):
    index = modelindex.load(str(ROOT / 'model-index.yml'))
    index.check(silent=False)
    assert {model.name: model.config for model in index.models} == {model.name: model.config for model in zoo.values()}
    assert all(model.full_model.paper for model in index.models)


def test_packaged():
    assert all(path.is_file() for path in METAFILES)
    assert (METAFILE.parents[1] / 'model-index.yml').read_text() == (ROOT / 'model-index.yml').read_text()
    assert (METAFILE.parents[1] / 'tools/train.py').is_file()


def test_find_model(zoo):
    model = zoo['mask_rcnn_xbn_r50']
    assert find_model('/elsewhere/configs/mask_rcnn_xbn_r50.py') == model == find_model('mask_rcnn_xbn_r50', zoo)
    assert find_model('my_own.py', zoo) is None and isinstance(model, Model)


def test_find_model_that_a_config_inherits_from(zoo, tmp_path):
    base = tmp_path / 'base.py'
    base.write_text(f'_base_ = {str(zoo["mask_rcnn_gn_r50_4conv1fc"].path)!r}')  # which inherits from a row itself
    mine = tmp_path / 'mine.py'
    mine.write_text("_base_ = './base.py'")
    assert find_model(mine, zoo).name == 'mask_rcnn_gn_r50_4conv1fc'
    yaml = tmp_path / 'mine.yaml'
    yaml.write_text("_base_: ['./mine.py']")
    assert find_model(yaml, zoo) == find_model(mine, zoo)
    base.write_text('_base_ = ["../../x/mask_rcnn_xbn_r50.py", "mmnorm::sn/faster_rcnn_sn_r50_c4.py"]')
    assert find_model(mine, zoo).name == 'faster_rcnn_sn_r50_c4'
    inside = "{__import__('mmnorm').__path__[0]}/.mim/configs/sn"  # as configs/README.md has it
    base.write_text(f'_base_ = [f"{inside}/faster_rcnn_sn_r50_c4.py", open("gone").name, "x/mask_rcnn_xbn_r50.py"]')
    assert find_model(mine, zoo).name == 'mask_rcnn_xbn_r50'
    base.write_text(f'_base_ = f"{inside}/_base_/../faster_rcnn_sn_r50_c4.py"')
    assert find_model(mine, zoo).name == 'faster_rcnn_sn_r50_c4'
    base.write_text('''_base_ = f"{__import__('mmnorm_gone').__path__[0]}/faster_rcnn_sn_r50_c4.py"''')
    assert find_model(mine, zoo) is None
    base.write_text('_base_ = "mine.py"')
    assert find_model(mine, zoo) is None
    mine.write_text('_base_ = "gone.py"')
    assert find_model(mine, zoo) is None
    mine.write_text(f'_base_ = {str(ROOT / "configs/_base_/schedule_90k.py")!r}')
    assert find_model(mine, zoo) is None


@pytest.mark.parametrize(
    ('name', 'text'),
    [
        ('mine.py', 'open("ran", "w")\n_base_ = open("ran", "w")'),
        ('mine.py', '_base_ = ['),
        ('mine.yaml', '_base_: !!python/object/apply:builtins.open [ran, w]'),
        ('mine.yaml', '- 1'),
        ('mine.json', '{"_base_": 1}'),
    ],
)
def test_what_a_config_inherits_from_is_not_run(zoo, tmp_path, monkeypatch, name, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text(text)
    assert find_model(tmp_path / name, zoo) is None and not (tmp_path / 'ran').exists()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(Config=None), 'entry m of the metafile is incomplete'),
        (dict(Color='red'), 'unknown keys: Color'),
        (
            dict(Metadata=dict(Task='sleeping', Norm='BN', Mode='live', Backbone='R-50', Data='COCO')),
            "'sleeping' is not one of",
        ),
        (dict(Published=[dict(Table='t')]), 'is incomplete'),
    ],
)
def test_bad_entry_is_named(tmp_path, change, message):
    metadata = dict(Task='object detection', Norm='BN', Mode='live', Backbone='R-50', Data='COCO')
    entry = {'Name': 'm', 'Config': 'm.py', 'In Collection': 'xbn', 'Metadata': metadata, 'Norms': {}}
    path = tmp_path / 'metafile.yml'
    path.write_text(yaml.safe_dump(dict(Models=[entry])))
    assert load_zoo(path)['m'].norms == {}
    entry = {key: value for key, value in (entry | change).items() if value is not None}
    path.write_text(yaml.safe_dump(dict(Models=[entry])))
    with pytest.raises(ValueError, match=message):
        load_zoo(path)


def test_no_metafile_or_the_same_name_twice(tmp_path):
    with pytest.raises(FileNotFoundError, match='does not exist'):
        load_zoo(tmp_path / 'none.yml')
    entries = yaml.safe_load(METAFILE.read_text())['Models'][:1] * 2
    (tmp_path / 'metafile.yml').write_text(yaml.safe_dump(dict(Models=entries)))
    with pytest.raises(ValueError, match='two entries named'):
        load_zoo(tmp_path / 'metafile.yml')


def test_list_and_show(tool, zoo):
    run = tool('zoo.py', 'list', '--paper', 'sn', '--norm', 'SyncSN', '--data', 'Cityscapes', '--task', 'semantic')
    chosen = [
        model for model in zoo.values() if (model.paper, model.norm, model.data) == ('sn', 'SyncSN', 'Cityscapes')
    ]
    lines = run.stdout.splitlines()[1:]
    assert {line.split()[0] for line in lines} == {model.config for model in chosen}
    shown = json.loads(tool('zoo.py', 'show', 'mask_rcnn_xbn_r50').stdout)
    assert shown[0]['published'][0]['metrics']['AP^bbox'] == 38.19


def test_filters_take_any_case(tool):
    args = ('--paper', 'XBN', '--norm', 'xbn', '--task', 'Detection', '--mode', 'SCRATCH', '--data', 'coco')
    names = {line.split()[0] for line in tool('zoo.py', 'list', *args).stdout.splitlines()[1:]}
    assert names == {f'configs/xbn/faster_rcnn_xbn_r50_scratch_8x{images}.py' for images in (2, 4, 8)}


def test_path_is_that_of_the_file(tool, tmp_path):
    """Relative to the current folder or to the repository; a file of the user's is never taken for the zoo's."""
    (tmp_path / 'link.py').symlink_to(ROOT / 'configs/mask_rcnn_xbn_r50.py')
    (tmp_path / 'faster_rcnn_xbn_r50.py').write_text('')
    (tmp_path / 'mask_rcnn_xbn_r50.py').symlink_to(ROOT / 'configs/mask_rcnn_xbn_r50.py')
    for name in (
        'mask_rcnn_xbn_r50',
        'configs/mask_rcnn_xbn_r50.py',
        './mask_rcnn_xbn_r50.py',
        ROOT / 'configs/mask_rcnn_xbn_r50.py',
    ):
        assert json.loads(tool('zoo.py', 'show', name).stdout)[0]['name'] == 'mask_rcnn_xbn_r50'
    for args in (['check', 'faster_rcnn_xbn_r50.py'], ['sweep', tmp_path / 'faster_rcnn_xbn_r50.py', 1]):
        run = tool('zoo.py', *args)
        assert run.returncode == 2 and 'is not the faster_rcnn_xbn_r50 of the zoo' in run.stdout
    run = tool('zoo.py', 'show', '/nonexistent/mask_rcnn_xbn_r50.py')
    assert run.returncode == 2 and '/nonexistent/mask_rcnn_xbn_r50.py does not exist' in run.stdout


def test_list_needs_no_torch(tool, tmp_path):
    """Which takes seconds to import."""
    (tmp_path / 'torch.py').write_text('raise SystemExit("torch was imported")')
    done = subprocess.run(
        command('zoo.py', 'list', 'mask_rcnn_xbn_r50'),
        capture_output=True,
        text=True,
        env=dict(environment(), PYTHONPATH=str(tmp_path)),
    )
    assert done.returncode == 0 and 'mask_rcnn_xbn_r50.py' in done.stdout, done.stderr


def test_output_that_is_cut_off(tmp_path):
    """`tools/zoo.py show | head -1` says nothing of a broken pipe."""
    done = subprocess.Popen(command('zoo.py', 'show'), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    done.stdout.readline()
    done.stdout.close()
    assert not done.stderr.read()
    done.stderr.close()
    done.wait()


@pytest.mark.parametrize(
    ('name', 'processes', 'said', 'options'),
    [
        (
            'faster_rcnn_bn_r50_scratch_8x2',
            1,
            '180,000 images, not 1,440,000',
            {'train_cfg.max_iters': 720000, 'param_scheduler.1.milestones': [480000, 640000]},
        ),
        (
            'pspnet_sn_r50_8x2_cityscapes',
            4,
            '595,000 images, not 1,190,000',
            {'train_cfg.max_iters': 148750, 'param_scheduler.0.end': 148750},
        ),
        (
            'pspnet_xbn_r50_digits',
            1,
            '4,000 images, not 8,000',
            {'train_cfg.max_iters': 2000, 'param_scheduler.1.end': 2000},
        ),
    ],
)  # a warm-up stays
def test_fewer_processes_than_the_iterations_are_for(zoo, name, processes, said, options):
    """The options that are said make the schedule see as many images, and then there is nothing more to say."""
    path = zoo[name].path
    cfg = Config.fromfile(path)
    text, _, command_line = describe_batch(cfg, path, processes).partition('--cfg-options ')
    assert said in text
    assert shlex.split(command_line) == [f'{key}={value}'.replace(' ', '') for key, value in options.items()]
    cfg.merge_from_dict(options)
    assert not describe_batch(cfg, path, processes)


@pytest.mark.parametrize(
    ('name', 'processes', 'change'),
    [
        ('faster_rcnn_bn_r50_scratch_8x2', 8, {}),
        ('faster_rcnn_bn_r50_scratch_8x2', 1, dict(auto_scale_lr=None)),
        ('faster_rcnn_bn_r50_scratch_8x2', 1, {'train_cfg.max_iters': 100}),
        ('faster_rcnn_rbn_r50', 1, {}),
    ],
)  # counts epochs
def test_nothing_to_say_of_a_batch(zoo, name, processes, change):
    cfg = Config.fromfile(zoo[name].path)
    cfg.merge_from_dict(change)
    assert not describe_batch(cfg, zoo[name].path, processes)
