"""A record in a notebook: what it says, and its key chart as a picture, so that nothing runs there."""

import base64

from markupsafe import Markup

from spikesink.records import Anatomy, TrainingRun
from spikesink.records.interventions import Interventions
from spikesink.records.study import StudyRecord
from spikesink.report.answer import Statement, answer
from spikesink.report.charts import Figure, intervention_figures, lifecycle_figures, sink_map
from spikesink.report.charts.study import name_of, study_figures
from spikesink.report.charts.training import training_figures
from spikesink.report.conditions import name
from spikesink.report.runs import Model
from spikesink.report.study_page import study_statements
from spikesink.report.write import drawn


def display(record: object) -> str | None:
    """HTML of the answer and the key charts; None for a record of another kind."""
    if isinstance(record, Anatomy):
        model = Model(name(record.provenance.model), anatomy=record)
        return _html(_measured(model), [lifecycle_figures(record)[0], sink_map(record)])
    if isinstance(record, Interventions):
        model = Model(name(record.provenance.model), interventions=record)
        return _html(_measured(model), intervention_figures(record)[:1])
    if isinstance(record, TrainingRun):
        wanted = ("training_loss", "training_max_over_median", "training_sink_ratio")
        figures = [figure for figure in training_figures([(record.name, record)]) if figure.name in wanted]
        return _html(_measured(Model(record.name, training=record)), figures)
    if isinstance(record, StudyRecord):
        wanted = name_of(record, "plane")
        return _html(study_statements(record), [item for item in study_figures(record) if item.name == wanted])
    return None


def _measured(model: Model) -> list[Statement]:
    return [statement for statement in answer(model) if statement.measured]


def _html(statements: list[Statement], figures: list[Figure]) -> str:
    lines = [Markup("<p><strong>{}.</strong> {}</p>").format(item.heading, item.text) for item in statements]
    return str(Markup("").join([Markup("<div>"), *lines, *map(_picture, figures), Markup("</div>")]))


def _picture(figure: Figure) -> Markup:
    picture = base64.b64encode(drawn(figure, "svg")).decode()
    image = Markup('<img src="data:image/svg+xml;base64,{}" alt="{}">').format(picture, figure.alternative)
    return Markup("<figure><figcaption>{}</figcaption>{}</figure>").format(figure.title, image)
