"""English words that say how a sentence is built rather than what it is about."""

from __future__ import annotations

FUNCTION_WORDS = frozenset(
    """
    a about above after again against all also although always am an and another any are as at away be because been
    before being below between both but by can cannot could did do does doing done down each either else even ever every
    few for from give had has hast hath have having he hence her here hers him his how however i if in into is it its
    itself just like made many may me might mine more most much must my neither never no none nor not now of off often
    on once one only onto or other others our ours out over own perhaps please rather said same say says shall shalt she
    should since so some something such tell than that the thee their theirs them then there therefore these they thine
    this those thou though through thus thy to too toward two under unless until unto up upon us very was we were what
    when where whether which while who whom whose why will with within without would ye yes yet you your yours
    """.split()  # noqa: SIM905 (as a list they would not fit on a screen)
)
