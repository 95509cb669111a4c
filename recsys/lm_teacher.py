"""A Hugging Face decoder as the teacher's backbone: the first layers of a language model, tuned with LoRA.

Item vectors go in through `inputs_embeds` and come out through a projected head, never through the model's words. The
middle layers of a language model are redundant for sequences of items, so it is cut before it is trained (SLMRec,
arXiv 2405.17890). Proven on tiny random Qwen2 and Llama models on a CPU.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import embedding

from recsys import language_model
from recsys.config import LmTeacherConfig
from recsys.decoder import Dropout
from recsys.errors import LanguageModelError, StoreError
from recsys.histories import Cases, Histories
from recsys.ranks import ALONE, Ranks
from recsys.teacher import TextTable
from recsys.training import Epoch, HardLabels, Schedule, device, fit, ignore, never, ranking_validator, seeded

DROPOUT = 0.1  # of item vectors read, and of what the adapters read
SEED = 0
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj"]  # of attention: what the adapters are put on


@dataclass(frozen=True)
class LmShape:
    """All that fixes the tensors of a language-model teacher, and which backbone they were trained on."""

    items: int  # N
    length: int  # L, the most items it reads
    backbone: str  # directory or hub id
    backbone_sha256: str  # of its files, see `language_model.digest`
    layers: int
    lora_rank: int
    head_width: int  # D


class LmTeacher(nn.Module):
    """A frozen language model with adapters, between a way in and a way out of the width items are scored in."""

    KIND: ClassVar = "language_model"

    def __init__(self, shape: LmShape, vectors: np.ndarray | None) -> None:
        """`vectors` (N, d) are the whitened texts; None where no item has one, or where the table holds them.

        Raises LanguageModelError when the backbone is not there, not a fitting decoder, or not the one of `shape`.
        """
        super().__init__()
        self.shape = shape
        self.backbone, spread = _backbone(shape)
        hidden = self.backbone.config.hidden_size
        self.table = nn.Embedding(shape.items + 1, shape.head_width)
        self.text = nn.Identity() if vectors is None else TextTable(vectors, shape.head_width)
        self.read = nn.Linear(shape.head_width, hidden)
        self.head = nn.Linear(hidden, shape.head_width)
        self.norm = nn.LayerNorm(shape.head_width)
        self.dropout = Dropout(DROPOUT)
        nn.init.normal_(self.table.weight, std=shape.head_width**-0.5)
        nn.init.normal_(self.read.weight, std=spread)
        nn.init.zeros_(self.read.bias)
        with torch.no_grad():
            self.table.weight[0] = 0

    @property
    def items(self) -> int:
        """N, how many items it knows: a prefix of later catalogs."""
        return self.shape.items

    @property
    def length(self) -> int:
        """L, the most items it reads."""
        return self.shape.length

    def item_table(self) -> Tensor:
        """(N + 1, D): id + W x text; row 0 is the padding."""
        table: Tensor = self.text(self.table.weight)
        return table

    def states(self, items: Tensor, table: Tensor) -> Tensor:
        """(B, L) int64 codes -> (B, L, D). Causal with padding on the right, so no attention mask is needed."""
        read = self.read(self.dropout(embedding(items, table))).to(self.backbone.dtype)
        hidden = self.backbone(inputs_embeds=read, use_cache=False).last_hidden_state
        states: Tensor = self.norm(self.head(hidden.to(self.head.weight.dtype)))
        return states

    def save(self, folder: Path) -> None:
        """Write teacher.safetensors, all that was trained with the text folded into the table, and teacher.json."""
        tensors = {name: p.detach() for name, p in self.named_parameters() if p.requires_grad}
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("text.")}
        tensors["table.weight"] = self.item_table().detach()
        save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, folder / "teacher.safetensors")
        described = {"kind": self.KIND, "shape": asdict(self.shape)}
        (folder / "teacher.json").write_text(
            json.dumps(described, sort_keys=True, indent=1, allow_nan=False), encoding="utf-8"
        )

    @classmethod
    def load(cls, folder: Path) -> Self:
        """What `save` wrote. Raises StoreError, and LanguageModelError when the backbone has changed since."""
        try:
            described = json.loads((folder / "teacher.json").read_text(encoding="utf-8"))
            teacher = cls(LmShape(**described["shape"]), None)
            trained = {name for name, p in teacher.named_parameters() if p.requires_grad}
            saved = load_file(folder / "teacher.safetensors")
            if saved.keys() != trained:
                raise ValueError(f"the tensors {sorted(saved.keys() ^ trained)} are missing or not expected")
            teacher.load_state_dict(saved, strict=False)  # the backbone's own weights are not among them
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise StoreError("a teacher cannot be read", where=f"{folder}: {error}") from None
        return teacher.to(device()).eval()


def fit_lm_teacher(
    histories: Histories,
    cases: Cases,
    items: int,
    vectors: np.ndarray | None,
    config: LmTeacherConfig,
    *,
    length: int,
    redraw_baskets: bool = True,
    on_epoch: Callable[[Epoch], None] = ignore,
    enough: Callable[[], bool] = never,
    checkpoint: Path | None = None,
    ranks: Ranks = ALONE,
) -> tuple[LmTeacher, list[Epoch]]:
    """Train adapters, item vectors and head; as `fit_teacher`. Raises LanguageModelError, TrainingError.

    Each of several `ranks` holds a part of the language model, which is frozen, and all of what is trained.
    """
    on = device()
    digest = language_model.digest(language_model.locate(config.backbone))
    shape = LmShape(items, length, config.backbone, digest, config.layers, config.lora_rank, config.head_width)
    with seeded(on, SEED):
        teacher = LmTeacher(shape, vectors)
    ranks.spread(teacher.backbone, teacher.backbone.layers)
    teacher.to(on)
    schedule = Schedule(config.epochs, config.learning_rate, SEED, redraw_baskets=redraw_baskets)
    validate = ranking_validator(teacher, cases)
    epochs = fit(
        teacher, histories, length, schedule, HardLabels(), validate,
        on_epoch=on_epoch, enough=enough, checkpoint=checkpoint, ranks=ranks,
    )  # fmt: skip
    return teacher, epochs


def _backbone(shape: LmShape) -> tuple[Any, float]:
    """The cut, frozen model with fresh adapters, and the spread of the word vectors it is used to reading."""
    from peft import LoraConfig, inject_adapter_in_model

    model = _pretrained(shape)
    spread = float(model.get_input_embeddings().weight.detach().float().std())
    model.set_input_embeddings(nn.Identity())  # items are read, never words
    model.layers = model.layers[: shape.layers]
    model.config.num_hidden_layers = shape.layers
    model.requires_grad_(False)
    adapters = LoraConfig(
        r=shape.lora_rank, lora_alpha=2 * shape.lora_rank, lora_dropout=DROPOUT, target_modules=PROJECTIONS
    )
    inject_adapter_in_model(adapters, model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # small steps would be lost in bfloat16
    if torch.cuda.is_available():
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model, spread


def _pretrained(shape: LmShape) -> Any:
    """The whole language model without its output words, after the checks."""
    from transformers import AutoModelForCausalLM

    language_model.silence()
    folder = language_model.locate(shape.backbone)
    if language_model.digest(folder) != shape.backbone_sha256:
        raise LanguageModelError(
            "the language model is not the one this teacher was trained on",
            where=shape.backbone,
            mend="Put its files back as they were, or train a new teacher.",
        )
    numbers = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    try:
        whole = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=numbers)
    except (OSError, ValueError, KeyError) as error:
        raise _unfit(shape, f"it cannot be read as a causal language model: {error}") from error
    model = whole.base_model
    if not hasattr(model, "layers") or not all(hasattr(model.layers[0].self_attn, p) for p in PROJECTIONS):
        raise _unfit(shape, "it has no layers with q_proj, k_proj, v_proj and o_proj")
    if shape.layers > len(model.layers):
        raise _unfit(shape, f"{shape.layers} layers are asked for and it has {len(model.layers)}")
    if shape.length > model.config.max_position_embeddings:
        raise _unfit(shape, f"it reads {model.config.max_position_embeddings} positions, not {shape.length}")
    return model


def _unfit(shape: LmShape, why: str) -> LanguageModelError:
    """The error for a model that is there and cannot be used."""
    return LanguageModelError(
        f"the language model cannot be a backbone: {why}",
        where=shape.backbone,
        mend="Use a decoder such as Qwen or Llama, and knobs that fit it.",
    )
