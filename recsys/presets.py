"""Named sets of sections, nothing more."""

from collections.abc import Mapping

from recsys.config import CompressConfig, NightConfig, SearchConfig, TeacherConfig

QUICK = NightConfig(
    teacher=TeacherConfig(width=64, dropout=0.3, epochs=3, learning_rate=2e-3),
    search=SearchConfig(trials=2, widths=(32,), epochs=3, learning_rate=4e-3),
    compress=CompressConfig(keep_ffn=(1.0, 0.25)),
)
STANDARD = NightConfig()
LARGE = NightConfig(
    teacher=TeacherConfig(width=256, blocks=2, epochs=40, learning_rate=7e-4, members=2),
    search=SearchConfig(trials=24, widths=(128, 64, 32), epochs=30),
)
PRESETS: Mapping[str, NightConfig] = {"quick": QUICK, "standard": STANDARD, "large": LARGE}
