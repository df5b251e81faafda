"""Data sets of the Hugging Face hub: what cannot be had is told in a sentence.

    splits = load_hub("roneneldan/TinyStories", None, None, streaming=True)

Exported from chapters/07_corpora.py; edit it there.
"""

import difflib
import errno
import functools
from typing import Any

from yaml import YAMLError

from slm.errors import SlmError
from slm.files import answers, within

# The hub, asked before it is trusted

PATIENCE = 120.0  # seconds for all that is asked before the data


def hub_error(name: str, error: BaseException) -> SlmError:
    """What a library says about the hub, in one sentence."""
    from datasets import config

    failed = f"Cannot read {name!r} from the Hugging Face hub"
    first: BaseException | None = error
    while first is not None:  # the first word, not the last
        if isinstance(first, OSError) and first.filename:  # this machine's disk
            why = f"{first.strerror}: {first.filename}"
            cure = "HF_HOME names the folder where it is stored"
            full = first.errno == errno.ENOSPC
            return SlmError(f"{failed}: {why}; {cure}.", retry=full)
        error, first = error.__cause__ or error, first.__cause__ or first.__context__
    status = getattr(getattr(error, "response", None), "status_code", 0)
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    no_data = isinstance(error, StopIteration | YAMLError)  # no rows; the card is wrong
    ours = no_data or isinstance(error, ValueError | RuntimeError | FileNotFoundError)
    retry = status in (408, 429) or status >= 500 if status else not ours
    if status == 429:
        reason = "too many requests were made (429)"
    elif status in (401, 403):
        cure = "log in with `hf auth login`, or ask its owner"
        reason = f"it is not open to everybody ({status}); {cure}"
    elif no_data:
        reason = f"what it holds is empty, or no data set ({reason})"
    later = ": try again in some minutes" if retry else ""
    if config.HF_HUB_OFFLINE:
        later = "; HF_HUB_OFFLINE is set, so only this machine's cache was searched"
    return SlmError(f"{failed}: {reason}{later}.", retry=retry)


def _ask(name: str, repository: str, revision: str | None) -> None:
    """Ask the hub whether it has a data set; a sentence within seconds if not."""
    from huggingface_hub import HfApi, constants, errors

    if not answers(constants.ENDPOINT, 4.0):
        silent = f"The Hugging Face hub does not answer, so {name!r} cannot be read"
        cure = "use 'stories' or a local file, or HF_HUB_OFFLINE=1 if it is stored"
        raise SlmError(f"{silent}: {cure}.", retry=True)
    try:
        HfApi().dataset_info(repository, revision=revision, timeout=10.0)
    except errors.RevisionNotFoundError:
        raise SlmError(f"{repository!r} has no revision {revision!r} there.") from None
    except errors.RepositoryNotFoundError:
        cure = "check the name, or log in with `hf auth login`"
        absent = f"The Hugging Face hub has no data set {repository!r}"
        raise SlmError(f"{absent}, or it is private: {cure}.") from None
    except errors.HFValidationError:
        rule = "letters without accents, digits, '-', '_', '.', no two of them together"
        wrong = f"{repository!r} is no name of the hub: allowed are {rule}"
        raise SlmError(f"{wrong}, and at most 96 signs.") from None
    except (ValueError, TypeError) as error:  # no JSON, or JSON of another kind
        other = "what answered is not the hub, but a login page or a proxy"
        wrong = f"Cannot read {name!r} from {constants.ENDPOINT}: {other}."
        raise SlmError(wrong, retry=True) from error
    except Exception as error:  # of whatever library it speaks through
        raise hub_error(name, error) from error


def _check_config(repository: str, config: str | None, revision: str | None) -> None:
    """Refuse if a part of the data set must be named, or is named wrongly."""
    import datasets

    names = datasets.get_dataset_config_names(repository, revision=revision)
    if config in names or (config is None and len(names) < 2):
        return
    near = difflib.get_close_matches(config or "", names) or names[:12]
    more = f", … ({len(names)} in all)" if len(names) > len(near) else ""
    has = f"it has {', '.join(map(repr, near))}{more}"
    what = f"no part {config!r}" if config else "several parts"
    say = f"say which: {f'{repository}:{near[0]}'!r}"
    raise SlmError(f"{repository!r} has {what}; {has}: {say}.") from None


def load_hub(
    repository: str, config: str | None, revision: str | None, streaming: bool
) -> Any:
    """The splits of a data set by name, as `datasets` gives them.

    Args:
        repository: "owner/name".
        config: Which of its parts, if it has several.
        revision: A branch, tag or commit; else the newest.
        streaming: Read it over the network row by row; else store it first. Without a
            network (HF_HUB_OFFLINE=1) it is read from this machine's cache.

    Raises:
        SlmError: What is wrong with the name, the network or the hub; `retry` is true
            where a later call may succeed.
    """
    part, at = f":{config}" if config else "", f"@{revision}" if revision else ""
    name = f"{repository}{part}{at}"
    try:
        import datasets
    except ImportError:
        raise SlmError(f"{name!r} needs datasets: pip install datasets.") from None
    offline = datasets.config.HF_HUB_OFFLINE

    how = dict(revision=revision, streaming=streaming and not offline)
    load = functools.partial(datasets.load_dataset, repository, config, **how)
    try:
        if not offline:
            within(PATIENCE, lambda: _ask(name, repository, revision))
        # a stream asks for the files only; what is stored may take as long as it takes
        return within(PATIENCE, load) if how["streaming"] else load()
    except SlmError:
        raise
    except Exception as error:  # the library lets through those of five others
        if isinstance(error, ValueError) and not offline:
            _check_config(repository, config, revision)
        raise hub_error(name, error) from error
