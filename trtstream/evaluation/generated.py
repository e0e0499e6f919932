"""What a method has written, in files: one for people, and one for a later evaluation."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from trtstream.atomic_file import atomic_file
from trtstream.errors import TrtstreamError
from trtstream.typed_json import from_json

Identity = dict[str, int | str]


@dataclass(frozen=True)
class Generated:
    """``ids``: the prompt's tokens and the generated ones, which took ``seconds``."""

    identity: Identity
    ids: list[int]
    seconds: float

    def save(self, path: Path, text: str) -> None:
        """Write the run to ``path`` and the text that it wrote beside it. Raises TrtstreamError where it cannot."""
        try:
            path.with_suffix(".txt").write_text(text, encoding="utf-8")
            with atomic_file(path, 0o644) as work:
                work.write_text(json.dumps(asdict(self)) + "\n")
        except OSError as error:
            raise TrtstreamError(f"{path} cannot be written ({error.strerror})") from error


def load_generated(path: Path, identity: Identity) -> Generated | None:
    """Read back what `Generated.save` wrote to ``path``. Returns None if the file does not exist.

    Raises TrtstreamError if the file cannot be read, or if its run's identity is not ``identity``.
    """
    try:
        generated = from_json(Generated, json.loads(path.read_text()), str(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise TrtstreamError(f"{path} cannot be read ({error}); remove it to generate its text again") from error
    differing = [name for name, value in identity.items() if generated.identity.get(name) != value]
    if differing:
        raise TrtstreamError(
            f"{path} holds a run that differs in {differing[0].replace('_', ' ')}; choose another --keep folder"
        )
    return generated
