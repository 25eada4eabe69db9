"""Pages of the reference: config keys from dataclasses, arguments of components, commands from parsers."""

import dataclasses
import importlib
import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from types import ModuleType
from typing import Any, get_origin

import kinemae
from kinemae.data_tools.command import Command
from kinemae.data_tools.components import Component, component_class, component_names
from kinemae.data_tools.config import MISSING

# Title, commands, and the dataclass of the keys.
CONFIGS = (
    ("Pretraining", "pretrain", "kinemae.pretrain.config:PretrainConfig"),
    ("Fine-tuning", "finetune train`, `evaluate`, `plan", "kinemae.finetune.config:FinetuneConfig"),
    ("Probes", "finetune probe`, `knn", "kinemae.finetune.probe.config:ProbeConfig"),
    ("Predict", "finetune predict", "kinemae.finetune.predict.config:PredictConfig"),
    ("Features", "finetune features", "kinemae.finetune.features.config:FeatureConfig"),
    ("Search", "finetune search", "kinemae.finetune.features.search:SearchConfig"),
    ("Map", "finetune map", "kinemae.finetune.features.map:MapConfig"),
    ("Sweep", "finetune sweep", "kinemae.finetune.sweep.halving:SweepConfig"),
    ("Report of a run", "finetune report", "kinemae.finetune.report.command:ReportConfig"),
    ("Import", "finetune import", "kinemae.finetune.conversion.options:ImportOptions"),
    ("Export", "finetune export", "kinemae.finetune.export.options:ExportOptions"),
    ("Synthetic videos", "data synth", "kinemae.data_tools.synth:SynthConfig"),
    (
        "Pictures of a model",
        "pretrain visualize`, `finetune visualize",
        "kinemae.pretrain.visualize.settings:VisualizeConfig",
    ),
    ("Sharding", "data shard", "kinemae.data_tools.sharding.plan:ShardConfig"),
    ("Add and merge", "data add`, `merge", "kinemae.data_tools.editing.merge:MergeConfig"),
    ("Removal", "data remove", "kinemae.data_tools.editing.selection:SelectionConfig"),
    ("Compaction", "data compact", "kinemae.data_tools.editing.compact:CompactConfig"),
    ("Subsets", "data subset", "kinemae.data_tools.editing.rewrite:SubsetConfig"),
    ("Other shards", "data reshard", "kinemae.data_tools.editing.rewrite:ReshardConfig"),
    ("Near duplicates", "data duplicates", "kinemae.data_tools.curation.duplicates:DuplicatesConfig"),
    ("Data card", "data card", "kinemae.data_tools.curation.card:CardConfig"),
    ("Indexing", "data index", "kinemae.data_tools.indexing.command:IndexConfig"),
    ("Report of a data set", "data report", "kinemae.data_tools.report.sampled_videos:ReportConfig"),
    ("Verification", "data verify", "kinemae.data_tools.verify.command:VerifyConfig"),
    ("Reading speed", "data bench", "kinemae.data_tools.benchmark:BenchConfig"),
    ("This machine", "launch local", "kinemae.launch.local:LocalCluster"),
    ("Hosts by ssh", "launch ssh", "kinemae.launch.ssh:SshCluster"),
    ("Slurm", "launch slurm", "kinemae.launch.slurm.cluster:SlurmCluster"),
    ("Kubernetes", "launch k8s", "kinemae.launch.k8s.cluster:KubernetesCluster"),
    ("Plan of a job", "launch plan", "kinemae.launch.plan.machines:Machines"),
)
# Title, config key, and the folder of the components with their base class.
COMPONENTS = (
    ("Masks", "masking", "kinemae.pretrain.masking", "Masking"),
    ("Pruning", "pruning", "kinemae.pretrain.pruning", "Pruning"),
    ("Noise", "noise", "kinemae.pretrain.noise", "Noise"),
    ("Targets", "target", "kinemae.pretrain.targets", "Target"),
    ("Attention", "model.attention", "kinemae.pretrain.model.attention", "AttentionKind"),
    ("Positions", "model.positions", "kinemae.pretrain.model.positions", "Positions"),
    ("Tasks", "task", "kinemae.finetune.tasks", "Task"),
    ("Heads", "head", "kinemae.finetune.heads", "Head"),
    ("Sources", "source", "kinemae.data_tools.sources", "Source"),
    ("Storage layouts", "layout", "kinemae.data_tools.layouts", "Layout"),
)
PROGRAMS = ("kinemae.data_tools", "kinemae.pretrain", "kinemae.finetune", "kinemae.launch")
_SECTION = re.compile(r"^(?:Args|Attributes):\n((?:    .*\n|\n)*)", re.M)
_ENTRY = re.compile(r"^    (\w+(?:, \w+)*): ((?:.*\n)(?:     .*\n|\n)*)", re.M)


@dataclasses.dataclass(frozen=True)
class Key:
    """A row of a table: a config key or an argument."""

    name: str
    kind: str
    default: str
    meaning: str


def meanings(documented: type) -> dict[str, str]:
    """Read the `Args` and `Attributes` of a class and of its bases: names and texts in one line."""
    found: dict[str, str] = {}
    for base in reversed(documented.__mro__):
        for text in (base.__doc__, base.__init__.__doc__):
            cleaned = inspect.cleandoc(text or "") + "\n"
            for section in _SECTION.findall(cleaned):
                for names, meaning in _ENTRY.findall(section):
                    found |= dict.fromkeys(names.split(", "), " ".join(meaning.split()))
    return found


def keys(schema: type, prefix: str = "") -> Iterator[Key]:
    """Yield every key of a config dataclass, with those of nested dataclasses."""
    described = meanings(schema)
    for entry in dataclasses.fields(schema):
        name = prefix + entry.name
        has_factory = entry.default is dataclasses.MISSING
        is_required = has_factory and entry.default_factory is dataclasses.MISSING
        default = MISSING if is_required else entry.default_factory() if has_factory else entry.default
        if dataclasses.is_dataclass(default) and not isinstance(default, Component):
            yield from keys(type(default), f"{name}.")
        else:
            yield Key(
                name,
                type_name(entry.type),
                value(default),
                described.get(entry.name, "").replace("None", "null"),
            )


def value(default: Any) -> str:
    """Write a default as in a config."""
    if default is MISSING or default == MISSING:
        return "required"
    if isinstance(default, Component):
        default = default.name if not default.args else dataclasses.asdict(default)
    text = default if isinstance(default, str) else json.dumps(default, default=list)
    return f"`{text}`" if text else '`""`'


def type_name(annotation: Any) -> str:
    """Write a type as in Python, without the modules."""
    text = (
        annotation.__name__
        if isinstance(annotation, type) and not get_origin(annotation)
        else str(annotation)
    )
    literal = re.sub(r"(?:typing|collections\.abc)\.", "", re.sub(r"[\w.]+\.(\w+)", r"\1", text))
    choices = re.sub(
        r"Literal\[(.*?)\]", lambda found: found[1].replace("'", "").replace(", ", " or "), literal
    )
    return choices.replace("None", "null")


def table(rows: list[Key]) -> str:
    """Write a table; a cell cannot hold a bare vertical bar."""
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for row in rows:
        cells = (f"`{row.name}`", row.kind, row.default, row.meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def configs_page() -> str:
    """The page of all config keys."""
    parts = [
        "# Config keys",
        "Each command reads its keys from a YAML file or from `KEY=VALUE` on the command line. "
        "This page is generated from the dataclasses of the code.",
    ]
    for title, command, path in CONFIGS:
        parts += [f"## {title}", f"Keys of `kinemae {command}`.", table(list(keys(load(path))))]
    return "\n\n".join(parts) + "\n"


def components_page() -> str:
    """The page of all components with their arguments."""
    parts = [
        "# Components",
        "A component is chosen by its name and takes arguments: `masking: {name: tube, args: {ratio: 0.9}}`. "
        "This page is generated from the constructors.",
    ]
    for title, key, folder, base in COMPONENTS:
        interface = load(f"{folder}.base:{base}")
        parts += [f"## {title}", f"Values of `{key}.name`, and their `{key}.args`."]
        for name in component_names(folder):
            found = component_class(folder, name, interface)
            parts += [f"### {key.rpartition('.')[2]}: {name}", summary(found)]
            rows = list(arguments(found))
            parts += [table(rows)] if rows else ["No arguments."]
    return "\n\n".join(parts) + "\n"


def arguments(found: type) -> Iterator[Key]:
    """Yield the arguments of a constructor; those without a meaning are given by the program."""
    described = meanings(found)
    for name, parameter in inspect.signature(found).parameters.items():
        is_given = parameter.default is parameter.empty and name in ("width", "outputs", "groups", "heads")
        if not is_given:
            default = MISSING if parameter.default is parameter.empty else parameter.default
            default = default_of_field(found, name, default)
            yield Key(
                name,
                type_name(parameter.annotation),
                value(default),
                described.get(name, "").replace("None", "null"),
            )


def default_of_field(found: type, name: str, default: Any) -> Any:
    """The default of a dataclass's field that has a factory."""
    entries = (
        {entry.name: entry for entry in dataclasses.fields(found)} if dataclasses.is_dataclass(found) else {}
    )
    entry = entries.get(name)
    has_factory = entry is not None and entry.default_factory is not dataclasses.MISSING
    return entry.default_factory() if has_factory else default  # type: ignore[union-attr]


def summary(documented: Any) -> str:
    """The docstring without its sections."""
    text = inspect.cleandoc(documented.__doc__ or "")
    return re.split(r"^(?:Args|Attributes|Raises|Returns):", text, flags=re.M)[0].strip()


def commands_page() -> str:
    """The page of all commands."""
    parts = [
        "# Commands",
        "`kinemae COMMAND --help` prints the same in a terminal. `a.b=c` are overrides of "
        "[config keys](configs.md). This page is generated from the parsers.",
    ]
    for package in PROGRAMS:
        program = importlib.import_module(f"{package}.__main__").PROGRAM
        parts += [f"## {program.name}", program.description]
        for command in program.commands:
            parts += describe(program.name, command)
    parts += ["## configs", "List the configs that come with KineMAE, or print one."]
    configs = importlib.import_module("kinemae.data_tools.config_files").PROGRAM
    for command in configs.commands:
        parts += describe("configs", command)
    return "\n\n".join(parts) + "\n"


def describe(program: str, command: Command) -> list[str]:
    """Describe a command: usage, arguments, example."""
    words = [name.upper() for name, _ in command.positionals]
    words += [f"[{command.optional[0].upper()}]"] if command.optional else []
    words += [f"{command.variadic[0].upper()} ..."] if command.variadic else []
    words += ["[a.b=c ...]"] if command.takes_overrides and not command.variadic else []
    rows = [(name.upper(), text) for name, text in command.positionals]
    rows += [(given[0].upper(), given[1]) for given in (command.optional, command.variadic) if given]
    rows += list(command.options)
    rows += [(f"{flag} {placeholder}", text) for flag, placeholder, text in command.value_options]
    words += [f"[{name}]" for name, _ in rows if name.startswith("--")]
    words += ["-- pretrain CONFIG [a.b=c ...]"] if command.takes_job else []
    usage = " ".join(filter(None, ["kinemae", program, command.name, *words]))
    heading = " ".join(filter(None, ["### kinemae", program, command.name]))
    lines = "\n".join(f"| `{name}` | {text} |".replace("\\|", "|") for name, text in rows)
    return [
        heading,
        *([sentence(command.help)] if command.help else []),
        code(usage),
        *([f"| argument | meaning |\n|---|---|\n{lines}"] if rows else []),
        "Example:",
        code(command.example),
    ]


def sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def code(text: str) -> str:
    return textwrap.indent(text.strip("\n"), "    ")


def python_page() -> str:
    """The page of the Python library: functions first, then classes; mkdocstrings fills in the docstrings."""
    parts = [
        "# Python",
        "Import these names from `kinemae`. Other modules are not part of the library and may change.",
    ]
    found = {name: getattr(kinemae, name) for name in sorted(kinemae.__all__)}
    classes = [each for each in found.values() if inspect.isclass(each)]
    functions = [each for each in found.values() if not inspect.isclass(each)]
    for title, members in (("Functions", functions), ("Classes", classes)):
        parts += [f"## {title}", *(f"::: {place(each)}" for each in members)]
    return "\n\n".join(parts) + "\n"


def place(found: Any) -> str:
    """The dotted path of a function or class; of a callable package, that of the function that it calls."""
    if isinstance(found, ModuleType):
        return ".".join(found._called)
    return f"{found.__module__}.{found.__qualname__}"


def load(path: str) -> type:
    """Import a class given as `module:name`."""
    module, name = path.split(":")
    found: type = getattr(importlib.import_module(module), name)
    return found


PAGES = {
    "reference/configs.md": configs_page,
    "reference/components.md": components_page,
    "reference/commands.md": commands_page,
    "reference/python.md": python_page,
}
