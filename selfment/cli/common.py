"""The arguments that commands share, and the objects that they describe.

Importing this module does not import torch, so that the help of a command appears at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from ..core import options as params
from ..core.options import RECOMMENDED_MIN_CONFIDENCE, CutOptions
from .choices import DTYPES, FEATURES, METHODS, POSITIONS

if TYPE_CHECKING:
    from ..backbones.files import FeatureFiles
    from ..images.load import ImageEntries
    from ..jobs.cluster import RayOptions
    from ..jobs.ranks import Ranks
    from ..methods import Method
    from ..models.labeler import PseudoLabeler

#: The kinds of names that `--backbone` takes, for its help.
BACKBONES = "classic, statistics, a ViT of timm, hf:PATH_OR_NAME, or package.module:factory"
_CUT = CutOptions()

Summary = TypeVar("Summary")


def add_images(
    parser: argparse.ArgumentParser,
    verb: str,
    several: str = "",
    several_taus: bool = False,
    kinds: str = "images",
) -> None:
    """Adds the images to ``verb``, and all that their labels depend on.

    ``several``: more words on the default backbone. ``several_taus``: see :func:`add_cut`.
    ``kinds``: of inputs, in words.
    """
    add = parser.add_argument
    add(
        "inputs", nargs="*", metavar="INPUT", help=f"{kinds}, folders (searched recursively), globs"
    )
    add("--samples", action="store_true", help=f"{verb} the photographs that scikit-image ships")
    add_backbone(parser, f"classic{several}")
    add_cut(parser, several_taus)
    add_run(parser)


def add_backbone(
    parser: argparse.ArgumentParser, default: str, trained: str = "", side: int | None = 768
) -> None:
    """Adds the backbone and the size of its images.

    Args:
        parser: receives the options.
        default: the words for the default backbone.
        trained: the words for the default features, positions and aspect ratio, if a head decides
            on them.
        side: the default size; None for a command with a ``--size`` of its own.
    """
    add = parser.add_argument_group("backbone").add_argument
    add("--backbone", metavar="NAME", help=f"{BACKBONES} ({default})")
    add(
        "--features",
        default=None if trained else "tokens",
        choices=FEATURES,
        help=f"features of a ViT ({trained or 'tokens'})",
    )
    add("--weights", metavar="PATH", help="a checkpoint of the ViT, or a hub folder")
    whose = "resample position embeddings as the authors (of *.dino, *_dinov2) or timm"
    add(
        "--positions",
        default=None if trained else "authors",
        choices=POSITIONS,
        help=f"{whose} ({trained or 'authors'})",
    )
    if side is None:
        return
    size = f"side the image is resized to ({side}, or the nearest multiple of the patch size)"
    add("--size", type=int, metavar="S", help=size)
    shorter = "padded to whole patches" if trained else "the nearest multiple of the patch size"
    add(
        "--keep-aspect",
        action=argparse.BooleanOptionalAction,
        default=None if trained else False,
        help=f"keep the aspect ratio: the longer side is S, the shorter {shorter}"
        f" ({trained or 'no'})",
    )


def add_head(parser: argparse.ArgumentParser, side: int | None) -> None:
    """Adds a trained head and the backbone that it is for; ``side``: see :func:`add_backbone`."""
    head = "a trained head: a file, a folder, or owner/repository on the Hugging Face hub"
    parser.add_argument("--head", required=True, metavar="CKPT", help=head)
    add_backbone(parser, default="that of the head's training", trained="as trained", side=side)


def add_cut(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """Adds the options of the cut, and those that judge its result.

    ``several``: ``--tau`` is a list of thresholds.
    """
    add = parser.add_argument_group("cut").add_argument
    similarity = "similarity of an edge, or auto: one for each image (%(default)s)"
    if several:
        similarity += "; several, with commas, are compared by eye, without --gt"
        add("--tau", type=_taus, default=[params.TAU], metavar="T,...", help=similarity)
    else:
        add("--tau", type=_tau, default=params.TAU, metavar="T", help=similarity)
    without = "the affinity of patches without an edge (%(default)s)"
    add("--eps", type=float, default=params.EPS, metavar="E", help=without)
    weights = "an edge weighs 1, or as much as its similarity (%(default)s)"
    add("--graph", default="binary", choices=params.GRAPHS, help=weights)
    orient = "how foreground is chosen (the backbone's default)"
    add("--orient", choices=params.ORIENTS, help=orient)
    least = f"below this confidence masks are empty, as {RECOMMENDED_MIN_CONFIDENCE} (%(default)s)"
    add("--min-confidence", type=float, default=0.0, metavar="C", help=least)


def add_run(parser: argparse.ArgumentParser) -> None:
    """Adds where and how fast the backbone runs."""
    group = parser.add_argument_group("speed")
    add = group.add_argument
    add("--batch", type=int, default=8, metavar="N", help="images per pass (%(default)s)")
    add("--device", help="torch device of the backbone (CUDA where there is one)")
    add("--dtype", choices=DTYPES, help="autocast the ViT to this (float32)")
    add_threads(group)


def add_threads(parser: argparse._ActionsContainer) -> None:
    """Adds the number of threads."""
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (torch's default)")


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Adds who starts the processes that share the work, see :func:`ray_options`."""
    add = parser.add_argument_group("processes, on machines that share all folders").add_argument
    starts = "let Ray start the processes (by default it is this one, or torchrun starts them)"
    add("--engine", choices=("ray",), help=starts)
    where = "a Ray cluster: auto, or ray://HOST:PORT (by default, Ray is started on this machine)"
    add("--address", help=where)
    each = "processes of Ray (2), each with --threads (1)"
    add("--workers", type=int, metavar="N", help=each)
    add("--gpus", type=float, metavar="X", help="GPUs of each, such as 0.5 (0)")


def add_voters(parser: argparse._ActionsContainer) -> None:
    """Adds the backbones that vote beside the first."""
    voters = "more backbones, with commas, whose clusters vote with the method selfmask"
    add = parser.add_argument
    add("--voters", type=names_of(), default=(), metavar="NAMES", help=voters)


def add_method(parser: argparse._ActionsContainer) -> None:
    """Adds the method that labels."""
    add = parser.add_argument
    add("--method", default="selfment", choices=METHODS, help="how to label (%(default)s)")


def add_frames(parser: argparse._ActionsContainer, what: str, default: bool) -> None:
    """Adds the option that writes the frames of videos as PNG files."""
    usual = "done" if default else "not done"
    words = (
        f"also write the {what} of a video as PNG files, one for each frame ({usual} by default)"
    )
    action = argparse.BooleanOptionalAction
    parser.add_argument("--frames", action=action, default=default, help=words)


def add_every(parser: argparse._ActionsContainer, verb: str) -> None:
    """Adds the option that leaves out frames of videos."""
    words = f"{verb} one of K frames of a video, from the first on (each)"
    parser.add_argument("--every", type=int, default=1, metavar="K", help=words)


def names_of(*choices: str) -> Callable[[str], list[str]]:
    """Returns an argument type: names with commas between them, from ``choices`` if given."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if choices and name not in choices:
                allowed = ", ".join(choices)
                raise argparse.ArgumentTypeError(f"must be of {allowed}: got {name!r}")
        return names

    return parse


def _tau(text: str) -> float | str:
    try:
        return text if text == params.AUTO else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number or 'auto': got {text!r}") from None


def _taus(text: str) -> list[float | str]:
    return [_tau(part) for part in text.split(",")]


def images_of(
    arguments: argparse.Namespace, find: Callable[..., ImageEntries] | None = None
) -> ImageEntries:
    """Returns the inputs that the arguments name; sets the number of threads, too.

    ``find``: searches the inputs; by default :func:`selfment.images.find_images`.
    """
    if bool(arguments.inputs) == arguments.samples:
        raise ValueError(f"give either the images to {arguments.command}, INPUT..., or --samples")
    from ..core import native
    from ..images.load import find_images, sample_images

    set_threads(arguments.threads)
    native.cpu()  # a module that cannot be loaded is the run's error, not that of each image
    if arguments.samples:
        return sample_images()
    return (find or find_images)(arguments.inputs, out=arguments.out)


def labeler_of(arguments: argparse.Namespace, files: FeatureFiles | None = None) -> PseudoLabeler:
    """Returns the labeler that the arguments describe; prints the note of its backbone.

    ``files``: the backbone instead of the arguments, if features are read from files.
    """
    from ..methods import METHODS, MultiObject, Selfment
    from ..models.labeler import PseudoLabeler

    options = method_options(arguments)
    kind: type[Method] = METHODS[arguments.method]
    if "max_objects" in options:
        if kind is not Selfment:
            raise ValueError(f"`objects` is no option of the method {kind.name!r}")
        kind = MultiObject
    model = model_options(arguments)
    if files is not None:
        model = {"backbone": files, "size": max(files.shape), "batch_size": arguments.batch}
    labeler = PseudoLabeler(**model, method=make_method(kind, options))
    if labeler.note:
        print(labeler.note, file=sys.stderr)
    return labeler


def model_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the arguments of :class:`selfment.PseudoLabeler` but for the method."""
    return {
        "backbone": arguments.backbone,
        "size": arguments.size,
        "features": arguments.features,
        "weights": arguments.weights,
        "device": arguments.device,
        "dtype": arguments.dtype,
        "positions": arguments.positions,
        "keep_aspect": arguments.keep_aspect,
        "batch_size": arguments.batch,
    }


def method_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the options of methods that differ from their defaults; raises ``ValueError``."""
    options = {
        "cut": CutOptions(**{name: getattr(arguments, name) for name in vars(_CUT)}),
        "min_confidence": params.check_min_confidence(arguments.min_confidence),
        "voters": getattr(arguments, "voters", ()),
        "max_objects": getattr(arguments, "max_objects", None),
    }
    defaults = {"cut": _CUT, "min_confidence": 0.0, "voters": (), "max_objects": None}
    return {name: value for name, value in options.items() if value != defaults[name]}


def make_method(kind: type[Method], options: Mapping[str, Any]) -> Method:
    """Returns the method with these options; raises ``ValueError`` for one it does not know."""
    known = kind.known(options)
    unknown = {name: options[name] for name in options if name not in known}
    if "cut" in unknown:
        cut = vars(unknown.pop("cut"))
        unknown |= {name: cut[name] for name in cut if cut[name] != getattr(_CUT, name)}
    for name, value in unknown.items():
        raise ValueError(f"`{name}` is no option of the method {kind.name!r}: got {value!r}")
    return kind(**options)


def ray_options(arguments: argparse.Namespace) -> RayOptions | None:
    """Returns the options of Ray, or None for another engine; raises ``ValueError``.

    With Ray the device of the backbone depends on ``--gpus``, unless it is an argument.
    """
    names = ("address", "workers", "gpus")
    values = {name: getattr(arguments, name) for name in names}
    options = {name: value for name, value in values.items() if value is not None}
    if arguments.engine is None:
        for name, value in options.items():
            raise ValueError(f"`{name}` must be left alone without --engine ray: got {value!r}")
        return None
    from ..jobs.cluster import RayOptions
    from ..util import distributed

    if distributed.world()[1] > 1:
        raise ValueError("`engine` must be left alone under torchrun: got 'ray'")
    if arguments.threads is not None:
        options["threads"] = arguments.threads
    ray = RayOptions(**options)
    if arguments.device is None:
        arguments.device = "cuda" if ray.gpus else "cpu"
    return ray


def run_ranks(ranks: Ranks[Summary], options: RayOptions | None) -> list[Summary]:
    """Runs a job on Ray, or as the process that this is; returns a summary for each process."""
    from ..util import distributed

    if options is not None:
        return ranks.run(options)
    return [ranks.job(shard=distributed.world())]


def check_default(arguments: argparse.Namespace, name: str, default: object, when: str) -> None:
    """Raises ``ValueError`` for an option that is of no use; ``when``: in which case, in words."""
    value = getattr(arguments, name)
    if value != default:
        raise ValueError(f"`{name}` must be left alone {when}: got {value!r}")


def set_threads(threads: int | None) -> None:
    """Sets torch's threads, if a number is given; raises ``ValueError``."""
    if threads is not None:
        import torch

        params.require("threads", threads, "an integer >= 1", threads >= 1)
        torch.set_num_threads(threads)
