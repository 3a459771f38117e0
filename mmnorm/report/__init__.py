"""Reports of runs: tables with the papers' figures, curves, and images with ground truth beside predictions.

``runs`` reads work dirs, ``coco`` evaluates predictions, ``tables``, ``plots`` and ``images`` show them, and ``page``
puts the report together.
"""

try:
    from .coco import Evaluation, evaluate_coco
    from .diagnosis import draw_perturbation, write_diagnosis
    from .page import write_report
    from .paper import summarize
    from .race import write_race
    from .runs import Run, load_run
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{error}: pip install 'mmnorm[report]' brings what the report needs", name=error.name
    ) from error

__all__ = [
    'Evaluation',
    'Run',
    'draw_perturbation',
    'evaluate_coco',
    'load_run',
    'summarize',
    'write_diagnosis',
    'write_race',
    'write_report',
]
