"""A step of a cut network needs a fraction of the memory of the end-to-end step."""

import jax
import jax.numpy as jnp
import optax
import pytest

from kd_local.contract import Program
from kd_local.local import ContSup, EndToEnd, cut
from kd_local.memory import CompilationRecords, compiled_peak, floor_bytes, footprint, plan_for, target
from kd_local.models import create
from kd_local.parallel import StepOptions, compile_step

NETWORK = create("resnet32", classes=10)
SMALL = create("resnet8", classes=10)
OPTIMIZER = optax.sgd(0.1, momentum=0.9, nesterov=True)
CIFAR = (32, 32, 3)
HERE = target()


def contsup(modules: int, context: str, network=SMALL) -> ContSup:
    return ContSup(cut(network, modules, classes=10, context=context), OPTIMIZER)


def tree_bytes(tree) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


@pytest.mark.exhaustive
def test_greedy_local_learning_in_sixteen_modules():
    whole = footprint(EndToEnd(NETWORK, OPTIMIZER), CIFAR, 256, HERE)
    cut_up = footprint(contsup(16, "R0", NETWORK), CIFAR, 256, HERE)
    assert cut_up.executables == 7
    assert cut_up.peak_bytes <= 0.21 * whole.peak_bytes
    assert whole.executables == len(whole.pieces) == 1


@pytest.mark.exhaustive
def test_equal_modules_share_executables_also_with_contexts():
    for context in ("R1", "R1E"):
        calls = plan_for(contsup(16, context, NETWORK), CIFAR, 8, HERE.mesh).calls
        assert len({call.signature for call in calls}) == 10


@pytest.mark.exhaustive
def test_a_compiled_step_has_the_peak_of_its_footprint():
    method, batch = contsup(3, "R1"), 8
    images, labels = jax.ShapeDtypeStruct((batch, 8, 8, 3), jnp.float32), jax.ShapeDtypeStruct((batch,), jnp.int32)
    expected = footprint(method, (8, 8, 3), batch, HERE).peak_bytes
    assert compiled_peak(compile_step(method, images, labels)) == expected > 0


@pytest.mark.exhaustive
def test_every_part_of_the_peak_is_counted_once():
    method, batch = contsup(3, "R1"), 8
    state = method.init(jax.random.key(0), jax.ShapeDtypeStruct((1, *CIFAR), "float32"))
    found = footprint(method, CIFAR, batch, HERE)
    images, label = batch * 32 * 32 * 3 * 4, batch * 4
    # ResNet-8 in three modules is cut behind stage1 and stage2: 16 channels at 32x32, 32 at 16x16; on the CPU a
    # module's input is not donated. The first module hands on its output; the image is the second one's context.
    wide, narrow = batch * 32 * 32 * 16 * 4, batch * 16 * 16 * 32 * 4
    assert [piece.state for piece in found.pieces] == [tree_bytes(state)] * 3
    first, second, last = found.pieces
    assert first.carried == images + label + wide
    assert second.carried == images + label + wide + narrow + wide  # its input, with the context added, is supplied
    assert last.carried == wide + label + narrow
    for piece, part in zip(found.pieces, state.values(), strict=True):
        assert piece.peak == piece.compilation.step_bytes + tree_bytes(state) - tree_bytes(part)
        assert piece.compilation.alias_bytes >= tree_bytes(part)
    assert found.peak_bytes == max(piece.peak for piece in found.pieces)


@pytest.mark.exhaustive
def test_a_divided_state_needs_less_memory_per_device():
    """Compares the state's bytes on each device with the compiler's count of the arguments."""
    mesh, method = target("local", devices=4).mesh, contsup(2, "R0")
    state = method.init(jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, 3), "float32"))
    need, known = {}, CompilationRecords()
    for shard in ("nothing", "optimizer", "state"):
        options = StepOptions(shard=shard)
        found = footprint(method, (8, 8, 3), 8, target("local", devices=4), options=options, records=known)
        placed = plan_for(method, (8, 8, 3), 8, mesh, options).place(state)
        held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(placed))
        assert found.state_bytes == held
        need[shard] = found
    assert need["state"].state_bytes < need["optimizer"].state_bytes < 0.8 * need["nothing"].state_bytes
    spared = need["nothing"].state_bytes - need["optimizer"].state_bytes
    assert need["nothing"].peak_bytes - need["optimizer"].peak_bytes >= 0.5 * spared


@pytest.mark.exhaustive
def test_footprints_compile_normalisation_per_device():
    known, four = CompilationRecords(), target("local", devices=4)
    footprint(contsup(2, "R0"), (8, 8, 3), 8, four, records=known)
    assert known.compiled == 2
    footprint(contsup(2, "R0"), (8, 8, 3), 8, four, options=StepOptions(batch_norm="device"), records=known)
    assert known.compiled == 4


class Relay:
    """Three programs; the second does not read what the first hands to the third."""

    deployed_program = None

    def init(self, rng, images):
        return {name: {"w": jnp.ones(3)} for name in ("first", "second", "third")}

    def logits(self, state, images):
        return images.reshape(len(images), -1)

    def exits(self, state, images):
        return {}

    def deployed(self, state):
        return {}

    def programs(self):
        def function(part, frozen, tensors, rng, constants):
            return part, (tensors[0] * 2,), {"loss": tensors[0].mean()}

        def last(part, frozen, tensors, rng, constants):
            return part, (), {"loss": tensors[0].mean() + tensors[1].mean()}

        return (
            Program("first", "a", function, ("images", "labels"), ("kept",)),
            Program("second", "b", function, ("images", "labels"), ("made",)),
            Program("third", "c", last, ("kept", "made")),
        )


def test_tensors_kept_for_a_later_piece_count_while_others_run():
    found = footprint(Relay(), CIFAR, 8, HERE)
    image, label, part = 8 * 32 * 32 * 3 * 4, 8 * 4, 3 * 4
    assert [piece.carried for piece in found.pieces] == [2 * image + label, 3 * image + label, 2 * image]
    first, second, _ = found.pieces
    assert first.peak == first.compilation.step_bytes + 2 * part
    assert second.peak == second.compilation.step_bytes + 2 * part + image


@pytest.mark.exhaustive
def test_the_floor_is_the_largest_sum_of_state_carried_tensors_and_a_block():
    method, batch = contsup(3, "R1"), 8
    found = footprint(method, CIFAR, batch, HERE)
    own = {"module00": 3, "module01": 10**6, "module02": 7}
    assert floor_bytes(method, CIFAR, batch, HERE, own) == found.state_bytes + found.pieces[1].carried + 10**6
    image, label = 8 * 32 * 32 * 3 * 4, 8 * 4
    # A program that trains no block has none of its own.
    assert floor_bytes(Relay(), CIFAR, 8, HERE, {"third": 5}) == 3 * 3 * 4 + 3 * image + label
    with pytest.raises(ValueError, match="batch is 0: use a whole number from 1"):
        floor_bytes(method, CIFAR, 0, HERE, own)


@pytest.mark.exhaustive
def test_joined_has_one_executable_and_the_same_work():
    separate = footprint(contsup(3, "R0"), CIFAR, 8, HERE)
    joined = footprint(contsup(3, "R0"), CIFAR, 8, HERE, options=StepOptions(form="joined"))
    assert joined.executables == 1
    assert joined.flops == separate.flops
    assert joined.state_bytes == separate.state_bytes


@pytest.mark.exhaustive
def test_executables_are_kept_in_a_file(tmp_path):
    path = tmp_path / "executables.jsonl"
    first = CompilationRecords(path)
    found = footprint(contsup(3, "R0"), CIFAR, 8, HERE, records=first)
    assert first.compiled == found.executables
    with path.open("a") as file:
        file.write('{"digest": "cut sho')
    again = CompilationRecords(path)
    assert footprint(contsup(3, "R0"), CIFAR, 8, HERE, records=again) == found
    assert again.compiled == 0
    footprint(contsup(3, "R0"), CIFAR, 16, HERE, records=again)
    assert again.compiled == found.executables


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match="batch is 0: use a whole number from 1"):
        footprint(contsup(3, "R0"), CIFAR, 0, HERE)
