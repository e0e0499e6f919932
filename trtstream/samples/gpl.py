"""The GNU General Public License, version 3: 35 kB of English text that every Debian system has."""

from __future__ import annotations

from pathlib import Path

GPL = Path("/usr/share/common-licenses/GPL-3")
