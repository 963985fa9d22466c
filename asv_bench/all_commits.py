"""Has asv draw each commit that a branch holds, whichever way it was merged (`plugins` in asv.conf.json)."""

from __future__ import annotations

from asv.plugins.git import Git


class AllCommits(Git):  # type: ignore[misc] # asv has no types
    """The repository, as asv sees it."""

    dvcs = "git, all commits"

    @classmethod
    def url_match(cls, url: str) -> bool:
        return False

    def get_branch_commits(self, branch: str) -> list[str]:
        return list(self._run_git(["rev-list", self.get_branch_name(branch), "--"], dots=False).split())
