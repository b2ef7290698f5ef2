"""The words that name something on the Hub: `owner/name[@revision][:concept]`.

Text only: whether there is such a repository, `hub` finds out. A file in a repository without our
metadata is named by its path or its stem in the concept's place.
"""

import os
import re
from dataclasses import dataclass

__all__ = ["REPO", "HubRef"]

REPO = r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}"
_REF = re.compile(rf"(?P<repo>{REPO})(?:@(?P<revision>\w[\w./-]*))?(?::(?P<name>[^:@\\]+))?")
_FILES = (".safetensors", ".gguf", ".f32", ".npz")


@dataclass(frozen=True)
class HubRef:
    """A repository, a branch, tag or commit of it, and which concept of it is meant."""

    repo: str
    revision: str | None = None
    name: str | None = None

    @classmethod
    def parse(cls, text: str) -> "HubRef | None":
        """Return what `text` names, or None: it is a path or a name of something here.

        A folder that is here is meant before a repository; so is any path below a folder that is.
        """
        found = _REF.fullmatch(text)
        if found is None or os.path.exists(text):
            return None
        ref = cls(found["repo"], found["revision"], found["name"])
        plain = ref.revision is None and ref.name is None
        if plain and (text.endswith(_FILES) or os.path.isdir(text.partition("/")[0])):
            return None
        return ref

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return f"{self.repo}{at}{f':{self.name}' if self.name else ''}"
