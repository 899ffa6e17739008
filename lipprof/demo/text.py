"""Real text for the demonstration: a file, TinyShakespeare, or the standard library's sources."""

import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lipprof.errors import ConfigError

TINY_SHAKESPEARE = "tinyshakespeare.txt"
_FOLDERS = (".", "data", "../shared/data")
_STDLIB_CHARACTERS = 1_000_000  # about the length of TinyShakespeare
_VALIDATION_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Text:
    """A text as character codes, split into training and validation."""

    origin: str
    train: Tensor  # (N,) int64
    validation: Tensor
    vocabulary: int

    def batch(
        self, split: str, *, size: int, length: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draw random windows.

        Args:
            split: ``train`` or ``validation``.
            size: number of windows.
            length: characters per window.
            generator: of the places.

        Returns:
            Inputs and targets, (size, length) each; the targets are one character ahead.
        """
        data = self.train if split == "train" else self.validation
        start = torch.randint(len(data) - length - 1, (size, 1), generator=generator)
        window = data[start + torch.arange(length + 1)]
        return window[:, :-1], window[:, 1:]


def load_text(path: Path | None = None) -> Text:
    """Read the text and code it by its own characters.

    Args:
        path: a text file; None: TinyShakespeare where it lies in the working directory, in
            ``data`` or in ``../shared/data``, and otherwise the standard library's sources.

    Returns:
        The text.

    Raises:
        ConfigError: the file cannot be read as UTF-8 or is too short.
    """
    if path is None:
        candidates = (Path(folder) / TINY_SHAKESPEARE for folder in _FOLDERS)
        path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        origin, content = "the Python standard library's sources", _standard_library()
    else:
        origin, content = path.name, _read(path)
    if len(content) < 10_000:
        raise ConfigError(f"{origin} has {len(content)} characters; the demo needs 10,000 or more.")
    characters = sorted(set(content))
    code = {character: i for i, character in enumerate(characters)}
    data = torch.tensor([code[character] for character in content])
    cut = int(len(data) * (1 - _VALIDATION_SHARE))
    return Text(origin, data[:cut], data[cut:], len(characters))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as UTF-8 text: {error}.") from None


def _standard_library() -> str:
    parts, total = [], 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        source = path.read_text(encoding="utf-8", errors="ignore")
        parts.append("".join(c for c in source if c == "\n" or " " <= c <= "~"))
        total += len(parts[-1])
        if total >= _STDLIB_CHARACTERS:
            break
    return "".join(parts)
