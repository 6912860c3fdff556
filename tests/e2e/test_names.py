"""Names that people type.  If these fail, a member that is away is a number, and a slip of the hand is no help."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.mesh import Mesh


def test_who_is_away_is_known_by_name_after_a_restart_and_a_mistyped_name_is_helped(short_path: Path) -> None:
    mesh = Mesh(short_path)
    try:
        nova, ada = mesh.start("nova", "ada", slots=1)
        nova.p2pc("run", "echo", ":::", "1").check()
        ada.stop()
        nova.restart()
        members = nova.p2pc("group", "members").check().out
        assert "\n  ada " in members and "not seen since 20" in members
        assert "not seen since 20" in nova.p2pc("trust", "show", "ada").check().out
        away = nova.p2pc("peers", "ada").check(2)
        assert "ada is a member that is away" in away.err and "it was heard last" in away.err
        assert "ada is away" in nova.p2pc("run", "--on", "ada", "echo", ":::", "1").check(2).err
        nova.p2pc("run", "--not-on", "ada", "echo", ":::", "1").check()
        for words in (
            ("run", "--on", "adaa", "echo", ":::", "1"),
            ("explain", "--node", "adaa"),
            ("peers", "adaa"),
            ("trust", "set", "adaa", "member"),
            ("trust", "show", "adaa"),
            ("trust", "compare", "adaa"),
            ("group", "remove", "adaa", "-y"),
            ("group", "heir", "adaa", "-y"),
        ):
            mistyped = nova.p2pc(*words).check(2).err
            assert "error[no-such-node]: " in mistyped, words
            assert "did you mean ada?" in mistyped.replace('"', ""), (words, mistyped)
        assert (
            nova.p2pc("show", "--on", "novaa").check().out == "no such tasks (none ran on novaa; did you mean nova?)\n"
        )
    except BaseException:
        mesh.close(is_failing=True)
        raise
    mesh.close()
