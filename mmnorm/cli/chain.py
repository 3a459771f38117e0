"""What a row of the zoo goes through, from weights to report: commands, and which results are there already."""

from pathlib import Path

from .light import light


def draw_chain(model):
    """Draw the chain of a row.

    Args:
        model (Model): Its entry.

    Returns:
        list[str]: A line for each step: ``[x]`` if its result is there, as seen from the current folder; what it is;
        the result; and the command.
    """
    run = light('terminal').command
    work_dir = Path('work_dirs', model.name)
    newest = _last_checkpoint(work_dir) or 'CHECKPOINT'
    steps = [
        ('fine-tune' if model.pretrained else 'train', f'{run("train")} {model.config}', work_dir, finished(work_dir)),
        ('evaluate', f'{run("test")} {model.config} {newest}', *_file(work_dir / 'evaluation.json')),
        ('report', f'{run("report")} {work_dir}', *_file(work_dir / 'report.html')),
    ]
    source, file = model.pretrained.get('From'), model.pretrained.get('File', '')
    if source:
        classifier, own = (
            Path('work_dirs', Path(source).stem),
            Path('pretrained', Path(source).name).with_suffix('.pth'),
        )
        published = own if '://' in file or not file else Path(file)
        pretrain = f'{run("pretrain")} {model.name}'
        steps[:0] = [
            ('pretrain', pretrain, classifier, finished(classifier) or published.is_file()),
            ('publish', pretrain, *_file(published)),
        ]
    elif file:
        steps.insert(0, ('weights', 'when the training starts' if '://' in file else 'see Source', *_file(file)))
    return [f'[{"x" if there else " "}] {step:<9}  {result}: {by}' for step, by, result, there in steps]


def finished(work_dir):
    """Whether a training in a work dir (Path) has come to its end, by its record."""
    record = work_dir / 'run.json'
    if not record.is_file():
        return False
    try:
        return bool(dict(light('files').read_json(record)).get('finished'))
    except (TypeError, ValueError) as error:
        raise ValueError(f'{record} cannot be read ({error}): remove it, and its training continues') from error


def _file(path):
    return path, Path(path).is_file()


def _last_checkpoint(work_dir):
    """As mmengine notes it (Path); None if there is none."""
    note = work_dir / 'last_checkpoint'
    return Path(note.read_text().strip()) if note.is_file() else None
