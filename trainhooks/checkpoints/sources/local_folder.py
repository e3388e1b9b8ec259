"""A checkpoint's folder on this machine: what lies in it, and which of it may be opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from trainhooks.checkpoints.base import CheckpointError
from trainhooks.checkpoints.sources.byte_source import LocalFile


@dataclass(frozen=True)
class LocalFolder:
    """A folder on this machine; `folders` are the names of those right below it, links to folders left out.

    Which files are read: any name without `..`, backslash or leading slash. A file listed in the folder may be a link
    to anywhere. One that only an index or metadata names must lie inside the folder once links are followed, or in
    `../../blobs`, where the hub's local cache keeps what its snapshots link to.
    """

    path: Path
    files: dict[str, Path]
    folders: tuple[str, ...] = ()

    @classmethod
    def list(cls, path: Path) -> LocalFolder:
        """What lies right in `path`. Raises CheckpointError."""
        try:
            entries = sorted(path.iterdir())
            folders = tuple(entry.name for entry in entries if entry.is_dir() and not entry.is_symlink())
            return cls(path, {entry.name: entry for entry in entries if not entry.is_dir()}, folders)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be listed: {error.strerror}.") from error

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    def lacks(self, name: str) -> bool:
        """Whether there is no such file, and no link of that name."""
        return name not in self.files and not (self.path / name).is_symlink() and not (self.path / name).exists()

    def open(self, name: str) -> LocalFile:
        """A file by its name, relative to the folder. Raises CheckpointError."""
        safe_name(name, where=self.name)
        if name not in self.files:
            try:
                real, root = (self.path / name).resolve(strict=True), self.path.resolve(strict=True)
            except (OSError, RuntimeError) as error:
                raise CheckpointError(f"{self.name} has no file {name} that can be read: {error}.") from error
            if not (real.is_relative_to(root) or real.is_relative_to(root.parent.parent / "blobs")):
                raise CheckpointError(f"{self.name}: {name} is a link out of the folder to {real}; it is not followed.")
        return LocalFile.open(self.path / name)

    def below(self, name: str) -> LocalFolder:
        """One of `folders`, as a folder of its own. Raises CheckpointError."""
        return LocalFolder.list(self.path / safe_name(name, where=self.name))


def safe_name(name: str, *, where: str) -> str:
    """A file's name as an index may give it. Raises CheckpointError where it leads out of the checkpoint."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        raise CheckpointError(f"{where}: it names the file {name!r}, outside the checkpoint; it is not opened.")
    return name
