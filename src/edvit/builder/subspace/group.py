"""One sub-model while it is being cut: it follows the base half a block at a time and fits what it has so far."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from edvit.builder.jobs.checkpoint import State
from edvit.builder.subspace import attention, ffn, forward, rotation
from edvit.builder.subspace.refit import Moments
from edvit.builder.subspace.statistics import Sums
from edvit.builder.vit import backbone
from edvit.shape.vit import Widths


@dataclass(frozen=True)
class Options:
    """What a cut does. Each step can be switched off, to see what it is worth.

    Attributes:
        rotate: keep the leading directions of the normalised stream; else its channels of most energy.
        fisher: share of the identity in the Fisher weight of the rotation, method of `rotation.leading`; None weighs
            nothing. Needs statistics with gradients.
        low_rank: factor `q k'` and `o W` in the data's metric; else keep the head dimensions of most energy.
        units: choose FFN units by energy, or by what a refit cannot make good (`elimination`).
        refit_readers: qkv, fc1 and the head read the best linear guess at the base's stream; else its projection.
        refit_writers: proj and fc2 are fitted by ridge regression; else cut alone.
        correct_errors: writers are fitted to the base's state less the sub-model's own; else to what the base wrote.
        foreign: weight of all images of foreign classes together, relative to the own.
        foreign_images: how many foreign images to refit to, relative to the own.
        unread: weight of tokens that nothing reads any more (of the last block, those that are not pooled), relative
            to those that are read. They are many: a little of them keeps a refit to few images from overfitting.
        ridge: of the writers, relative to the mean eigenvalue of their inputs' covariance.
        reader_ridge: as `ridge`, of the readers.
    """

    rotate: bool = True
    fisher: float | None = None
    low_rank: bool = True
    refit_readers: bool = True
    refit_writers: bool = True
    correct_errors: bool = True
    foreign: float = 1 / 3
    foreign_images: float = 1 / 3
    unread: float = 0.3
    ridge: float = 1e-2
    reader_ridge: float = 1e-3


class Cutting:
    """The state of one sub-model's cut.

    Args:
        base: converted.
        sums: of the group, one bin.
        widths: of the sub-model.
        rows: its images' places in the base's streams, int64 `[images]`.
        weights: of its images, float64 `[images]`.
        options: what to do.
        batch_size: images at a time.
    """

    def __init__(
        self,
        base: VisionTransformer,
        sums: Sums,
        widths: Widths,
        *,
        rows: Tensor,
        weights: Tensor,
        options: Options,
        batch_size: int,
    ) -> None:
        self.base, self.sums, self.widths, self.options = base, sums, widths, options
        self.rows, self.weights, self.batch_size = rows, weights, batch_size
        self.rotation = self._directions(sums.stream[0], sums.gradient[0])
        architecture = backbone.describe(base)
        self.model = narrow(base, widths)
        self.tokens = architecture.tokens
        self.stream = torch.empty(0)
        self.explained: list[float] = []
        self.scale = math.sqrt(architecture.widths.dim / widths.dim)
        self._copy_fixed()

    def _directions(self, moment: Tensor, gradient: Tensor) -> Tensor:
        if not self.options.rotate:
            energy = moment.diagonal()
            kept = torch.sort(torch.argsort(energy, descending=True, stable=True)[: self.widths.dim]).values
            return attention.selection(kept, len(moment))
        if self.options.fisher is None or len(gradient) != len(moment):
            return rotation.leading(moment, self.widths.dim)
        return rotation.leading(moment, self.widths.dim, gradient, self.options.fisher)

    def _copy_fixed(self) -> None:
        """Norms, and the layers before block 0."""
        model, base = self.model, self.base
        norms = backbone.stream_norms(model)
        q = self.rotation
        if forward.has_pre_norm(base):
            norms = [*norms, model.norm_pre.norm]
            q = self._directions(self.sums.embedding[0], self.sums.gradient[0][:0, :0])
            mix = base.norm_pre.mix
            _set(model.norm_pre.mix, self.rotation.T @ mix.weight.double() @ q, self.rotation.T @ mix.bias.double())
        for norm in norms:
            norm.weight.fill_(self.scale)  # the root of the mean over d in place of D
        projection = base.patch_embed.proj
        model.patch_embed.proj.weight.copy_(torch.einsum("oipq,od->dipq", projection.weight.double(), q))
        if projection.bias is not None:
            model.patch_embed.proj.bias.copy_(projection.bias.double() @ q)
        for name in ("cls_token", "reg_token", "pos_embed"):
            if getattr(base, name) is not None:
                getattr(model, name).copy_(getattr(base, name).double() @ q)
        self.inner_rotation = q

    def state(self) -> State:
        """All that changes from one half block to the next."""
        return {"model": self.model.state_dict(), "stream": self.stream, "explained": list(self.explained)}

    def restore(self, state: State) -> None:
        """Become what `state` was taken from; the base, the statistics and the images are the same."""
        self.model.load_state_dict(state["model"])
        self.stream, self.explained = state["stream"].to(self.rotation.device), state["explained"]

    # --- following the base ------------------------------------------------------------------------------------

    def embed(self, stream: Tensor, inner: Tensor | None) -> None:
        """Set the stream before block 0 from the base's, and from that before its norm where it has one there."""
        if inner is None:
            self.stream = stream[self.rows] @ self.rotation.float()
            return
        model = self.model
        normal = model.norm_pre.norm(inner[self.rows] @ self.inner_rotation.float())
        if self.options.refit_writers:
            moments = Moments(self.widths.dim, self.widths.dim)
            for part in self._parts():
                moments.add(normal[part], stream[self.rows[part]] @ self.rotation.float(), self._token_weights(part))
            _set(model.norm_pre.mix, *moments.solve(model.norm_pre.mix.weight, self.options.ridge))
        self.stream = model.norm_pre.mix(normal)

    def read_attention(self, index: int, before: Tensor) -> None:
        """Set qkv of block `index`, and what proj is before it is fitted."""
        block, old = self.model.blocks[index], self.base.blocks[index]
        weight, bias = self._read(block.norm1, old.norm1, old.attn.qkv, before)
        width, base_width = self.widths.blocks[index], _head_shape(old)
        writer = (old.attn.proj.weight.double().T @ self.rotation).view(*base_width, -1)
        mean = self.sums.output_mean[0, index]
        total = self.sums.images[0] * before.shape[1]
        covariance = self.sums.output[0, index] / total - torch.einsum("hd,he->hde", mean, mean) / total**2
        kept = attention.chosen_heads(covariance, writer, width.heads)
        maps = self._head_maps(index, kept, covariance, writer)
        parts = (weight.view(3, *base_width, -1), bias.view(3, *base_width))
        fold = 1.0 if self._qk_norm else math.sqrt(width.head_dim / base_width[1])
        new_weight, new_bias = [], []
        for which, scale in ((0, fold), (1, 1.0), (2, 1.0)):
            for head, of_head in zip(kept.tolist(), maps, strict=True):
                narrow = (of_head.query, of_head.key, of_head.value)[which] * scale
                new_weight.append(narrow.T @ parts[0][which, head])
                new_bias.append(parts[1][which, head] @ narrow)
        _set(block.attn.qkv, torch.cat(new_weight), torch.cat(new_bias))
        back = torch.cat([of_head.back for of_head in maps])
        # What is cut of the outputs is missing around their mean: the rest of the mean goes into the bias.
        lost = sum(
            (mean[h] / total) @ (writer[h] - of_head.value @ of_head.back)
            for h, of_head in zip(kept.tolist(), maps, strict=True)
        )
        without = [h for h in range(base_width[0]) if h not in kept.tolist()]
        lost = lost + sum((mean[h] / total) @ writer[h] for h in without)
        _set(block.attn.proj, back.T, old.attn.proj.bias.double() @ self.rotation + lost)

    def write_attention(self, index: int, before: Tensor, after: Tensor) -> None:
        """Fit proj of block `index`, and take the stream past it."""
        block = self.model.blocks[index]
        if self.options.refit_writers:
            moments = Moments(block.attn.proj.in_features, self.widths.dim)
            for part in self._parts():
                inputs = forward.side_by_side(forward.heads(block, block.norm1(self.stream[part])).output)
                moments.add(
                    inputs, self._target(part, before, after), self._token_weights(part, last=self._is_last(index))
                )
            _set(block.attn.proj, *moments.solve(block.attn.proj.weight, self.options.ridge))
        self._step(partial(forward.after_attention, block), after, last=self._is_last(index))

    def read_ffn(self, index: int, before: Tensor) -> None:
        """Find what fc1 of block `index` would be with every unit."""
        block, old = self.model.blocks[index], self.base.blocks[index]
        self._every_unit = self._read(block.norm2, old.norm2, old.mlp.fc1, before, last=self._is_last(index))

    def write_ffn(self, index: int, before: Tensor, after: Tensor) -> None:
        """Choose the units of block `index`, fit fc2 on them, and take the stream past it."""
        block, old, options = self.model.blocks[index], self.base.blocks[index], self.options
        weight, bias = self._every_unit
        prior = self.rotation.T @ old.mlp.fc2.weight.double()
        every = nn.Linear(weight.shape[1], weight.shape[0]).requires_grad_(False)
        _set(every, weight, bias)
        kept = self._units(index, prior)
        moments = Moments(len(kept), self.widths.dim)
        if options.refit_writers:
            for part in self._parts():
                units = block.mlp.act(every(block.norm2(self.stream[part])))[..., kept]
                moments.add(
                    units, self._target(part, before, after), self._token_weights(part, last=self._is_last(index))
                )
        _set(block.mlp.fc1, weight[kept], bias[kept])
        if options.refit_writers:
            _set(block.mlp.fc2, *moments.solve(prior[:, kept], options.ridge))
        else:
            mean = self.sums.unit_mean[0, index] / self.sums.tokens[0, index]
            mean[kept] = 0.0  # the units that go leave their mean behind
            _set(block.mlp.fc2, prior[:, kept], self.rotation.T @ old.mlp.fc2.bias.double() + prior @ mean)
        self._step(partial(forward.after_ffn, block), after, last=self._is_last(index))

    def _step(self, half: Callable[[Tensor], Tensor], after: Tensor, *, last: bool) -> None:
        """Take the stream past half a block, and note how much of the base's it explains."""
        weight, total, energy, lost = 0.0, torch.zeros(self.widths.dim, dtype=torch.float64), 0.0, 0.0
        for part in self._parts():
            self.stream[part] = half(self.stream[part])
            target, w = after[self.rows[part]] @ self.rotation.float(), self._token_weights(part, last=last)[..., None]
            weight += float(w.sum())
            total += (w * target).sum(dim=(0, 1))
            energy += float((w * target.square()).sum())
            lost += float((w * (target - self.stream[part]).square()).sum())
        variance = energy - float(total.square().sum()) / weight
        self.explained.append(1.0 - lost / variance if variance > 0 else 1.0)

    def finish(self, after: Tensor) -> VisionTransformer:
        """Set the head; the sub-model."""
        model, head = self.model, self.base.head
        of_feature = rotation.of_vectors(self.rotation, backbone.pooled_vectors(model))
        weight, bias = head.weight.double() @ of_feature, head.bias.double()
        if self.options.refit_readers:
            moments = Moments(of_feature.shape[1], of_feature.shape[0])
            for part in self._parts():
                x = backbone.read_by_head(model, self.stream[part])
                moments.add(x, backbone.read_by_head(self.base, after[self.rows[part]]), self.weights[part])
            guess, shift = moments.solve(of_feature, self.options.reader_ridge)
            weight, bias = head.weight.double() @ guess, head.bias.double() + head.weight.double() @ shift
        _set(model.head, weight, bias)
        return model

    @property
    def energy(self) -> float:
        """Share of the normalised stream's second moment in the kept directions."""
        moment = self.sums.stream[0]
        return float(torch.einsum("dk,de,ek->", self.rotation, moment, self.rotation) / moment.trace())

    # --- parts of it -------------------------------------------------------------------------------------------

    @property
    def _qk_norm(self) -> bool:
        return not isinstance(self.base.blocks[0].attn.q_norm, nn.Identity)

    def _parts(self) -> Iterator[slice]:
        for start in range(0, len(self.rows), self.batch_size):
            yield slice(start, start + self.batch_size)

    def _token_weights(self, part: slice, *, last: bool = False) -> Tensor:
        """`[images, tokens]`; with `last`, `Options.unread` for tokens that nothing reads any more."""
        weights = self.weights[part][:, None].repeat(1, self.tokens)
        if not last:
            return weights
        read = torch.full((1, self.tokens, 1), self.options.unread, dtype=torch.float64)
        forward.pooled(self.base, read).fill_(1.0)
        return weights * read[:, :, 0]

    def _target(self, part: slice, before: Tensor, after: Tensor) -> Tensor:
        rows = self.rows[part]
        if self.options.correct_errors:
            return after[rows] @ self.rotation.float() - self.stream[part]
        return (after[rows] - before[rows]) @ self.rotation.float()

    def _is_last(self, index: int) -> bool:
        return index == len(self.base.blocks) - 1

    def _read(
        self, norm: Any, old_norm: Any, reader: Any, before: Tensor, *, last: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Weight `[out, dim]` and bias `[out]` of a base layer on the sub-model's normalised stream."""
        weight, bias = reader.weight.double(), reader.bias.double()
        if not self.options.refit_readers:
            return weight @ self.rotation, bias
        moments = Moments(self.widths.dim, self.rotation.shape[0])
        for part in self._parts():
            moments.add(
                norm(self.stream[part]), old_norm(before[self.rows[part]]), self._token_weights(part, last=last)
            )
        guess, shift = moments.solve(self.rotation, self.options.reader_ridge)
        return weight @ guess, bias + weight @ shift

    def _units(self, index: int, prior: Tensor) -> Tensor:
        tokens = self.sums.tokens[0, index]
        mean = self.sums.unit_mean[0, index] / tokens
        variance = self.sums.unit[0, index] / tokens - mean.square()
        return ffn.by_energy(variance, prior, self.widths.blocks[index].hidden)

    def _head_maps(self, index: int, kept: Tensor, covariance: Tensor, writer: Tensor) -> list[attention.HeadMaps]:
        rank = self.widths.blocks[index].head_dim
        query, key = self.sums.query[0, index], self.sums.key[0, index]
        width = query.shape[-1]
        shared = None
        if self._qk_norm:
            # A norm stands between these layers and the logits: nothing but a choice of dimensions passes through it,
            # and its gains serve every head, so the choice is one for all.
            diagonals = (query[kept].diagonal(dim1=1, dim2=2), key[kept].diagonal(dim1=1, dim2=2))
            dims = attention.chosen_logit_dims(*diagonals, rank)
            shared = attention.selection(dims, width)
            self._narrow_qk_norms(index, dims, math.sqrt(rank / width))
        maps = []
        for head in kept.tolist():
            if shared is not None:
                q = k = shared
            elif self.options.low_rank:
                q, k = attention.logit_maps(query[head], key[head], rank)
            else:
                dims = attention.chosen_logit_dims(query[head].diagonal(), key[head].diagonal(), rank)
                q = k = attention.selection(dims, width)
            if self.options.low_rank:
                v, back = attention.value_maps(covariance[head], writer[head], rank)
            else:
                v = attention.selection(attention.chosen_value_dims(covariance[head], writer[head], rank), width)
                back = v.T @ writer[head]
            maps.append(attention.HeadMaps(q, k, v, back))
        return maps

    def _narrow_qk_norms(self, index: int, dims: Tensor, scale: float) -> None:
        """The scale of logits is that of the base's head width; timm divides by the root of the new one."""
        new, old = self.model.blocks[index].attn, self.base.blocks[index].attn
        for name, factor in (("q_norm", scale), ("k_norm", 1.0)):
            for parameter, value in getattr(old, name).named_parameters():
                getattr(getattr(new, name), parameter).copy_(value[dims] * factor)


def narrow(base: VisionTransformer, widths: Widths) -> VisionTransformer:
    """A model of these widths like the base, where the base is, with weights that mean nothing, in evaluation mode."""
    architecture = backbone.describe(base).model_copy(update={"widths": widths})
    model = backbone.initialised(backbone.template_of(architecture))
    return model.eval().to(base.head.weight.device)


def _head_shape(block: Any) -> tuple[int, int]:
    return block.attn.num_heads, block.attn.head_dim


def _set(linear: Any, weight: Tensor, bias: Tensor) -> None:
    linear.weight.copy_(weight)
    linear.bias.copy_(bias)
