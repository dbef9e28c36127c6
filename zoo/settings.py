"""Every key of the command line, with its type and default: one dataclass for each group.

`zoo.cli` composes them from `zoo/configs`, the command line and these defaults; a mistyped key or a
value of another type stops a command before it starts. This module imports nothing from `zoo`.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class ModelConfig:
    """Group `model`: the arguments of `zoo.create_model`."""

    name: str = "efficientformer_l1"
    encoder: str | None = None  # backbone of unet, fpn and the other decoders
    pretrained: bool = False
    checkpoint_path: str | None = None
    num_classes: int | None = None  # null: as many as the data has
    in_chans: int | None = None  # null: as many as the data has
    img_size: Any = None  # only for models whose parameters depend on the size
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    global_pool: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)  # arguments of one family only


@dataclass
class DataConfig:
    """Which images a run sees, and how they are prepared."""

    # images with classes: digits, folder, imagenet, cifar10, cifar100, hfds/<name>, wds/<name>;
    # with a class for each pixel: digits_segmentation, folder_segmentation, voc, oxford_pet;
    # with the same image at twice the size: photos_superres
    name: str = "digits"
    root: str | None = None  # folder of the data; for hfds/<name> the cache folder
    download: bool = False  # fetch CIFAR, VOC or the Oxford pets where they are absent
    train_split_name: str | None = None  # folder or split to train on
    val_split_name: str | None = None  # folder or split to validate on
    val_split: float | None = (
        None  # share of the train images held out where there is no such split
    )
    input_key: str | None = None  # hfds, wds: column or file extension of the image
    target_key: str | None = None  # hfds, wds: column or field of the label
    num_classes: int | None = None  # wds, folder_segmentation: they do not say how many there are
    class_names: list[str] | None = None  # folder_segmentation: what the class numbers mean
    palette: Any = None  # folder_segmentation: [[r, g, b], ...] of the classes in coloured masks
    train_images: int | None = None  # digits_segmentation, photos_superres: made for each epoch
    val_images: int | None = None  # digits_segmentation: made for validation

    image_size: Any = None  # one number for a square, or [height, width], in pixels
    in_chans: int = 3  # 3 (colour) or 1 (grey)
    mean: list[float] | None = None  # one number a channel, of values in 0..1
    std: list[float] | None = None
    interpolation: str | None = None  # nearest, bilinear, bicubic, box, hamming, lanczos
    crop_pct: float | None = None  # evaluation: share of the resized image that the crop keeps

    # training only, with timm's names and meaning
    train_interpolation: str | None = None  # as interpolation, or random; null: as interpolation
    scale: list[float] | None = None  # random resized crop: range of the area
    ratio: list[float] | None = None  # and of width over height
    hflip: float | None = None  # probability
    vflip: float | None = None  # probability
    color_jitter: Any = None  # one strength, or [brightness, contrast, saturation(, hue)]
    auto_augment: str | None = None  # e.g. rand-m9-mstd0.5-inc1, augmix-m3-w3, original
    re_prob: float | None = None  # random erasing: probability
    re_mode: str | None = None  # const, rand or pixel
    re_count: int | None = None  # largest number of erased boxes

    num_workers: int | None = None  # processes that load; 0: the main one
    cache: bool = False  # keep every decoded image in memory
    skip_corrupt: bool = False  # drop what cannot be read instead of stopping


@dataclass
class TrainConfig:
    """How a model is trained."""

    # length
    epochs: int = 8
    stop_at_epoch: int | None = None  # leave, resumable, after so many; the schedule spans `epochs`
    limit_train_batches: int | None = None  # of every epoch, for a smoke run
    limit_val_batches: int | None = None
    resume: str | None = None  # a run folder or one of its checkpoints; the run continues there

    # batches; one update sees batch_size x accumulate x processes images
    batch_size: int = 16  # of each process
    accumulate: int = 1

    # optimizer and schedule: names and arguments are those of timm's factories
    optimizer: str = "adamw"
    optimizer_args: dict[str, Any] = field(default_factory=dict)
    lr: float = 2e-3  # for `lr_base_batch` images an update
    lr_base_batch: int = 16
    lr_scale: str = "sqrt"  # with the images of an update: linear, sqrt (suits Adam), none
    weight_decay: float = 0.05  # not for vectors, nor for what model.no_weight_decay() names
    layer_decay: float | None = None  # the lr falls by this factor a layer towards the input
    scheduler: str = "cosine"
    scheduler_args: dict[str, Any] = field(default_factory=dict)
    warmup_epochs: float = 1.0
    warmup_lr: float = 1e-6
    min_lr: float = 1e-6
    clip_grad: float | None = None
    clip_mode: str = "norm"  # norm, value, agc
    freeze: list[str] = field(default_factory=list)  # globs of modules or parameters, all-but-head

    # loss, mixing, distillation
    loss: str | None = None  # null: cross-entropy, or charbonnier for super-resolution
    loss_args: dict[str, Any] = field(default_factory=dict)
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mixup_prob: float = 1.0  # of mixing a batch at all
    mixup_switch_prob: float = 0.5  # of cutmix where both are on
    mixup_off_epoch: int = 0  # 0: never off
    distill: str = "none"  # none, hard, soft
    distill_teacher: str | None = None  # any name that create_model takes
    distill_teacher_weights: str | None = None  # null: the published ones
    distill_alpha: float = 0.5  # share of the teacher in the loss
    distill_tau: float = 1.0  # temperature of soft distillation

    # int8 in training, from weights to start from (docs/qat.md)
    qat: bool = False

    # averaged weights; 0: none
    ema_decay: float = 0.0
    ema_warmup: bool = True  # start with a short memory

    # machine
    accelerator: str = "auto"
    devices: Any = "auto"  # processes on this machine; torchrun says it itself
    num_nodes: int = 1
    strategy: str = "auto"  # auto, ddp
    precision: str = "32"  # 32, bf16, fp16
    sync_bn: bool = False
    channels_last: bool = True
    compile: bool = False
    seed: int = 0
    deterministic: bool = False  # refuse operators that are not reproducible

    # what is written
    out: str = "runs"
    loggers: list[str] = field(default_factory=lambda: ["csv", "tensorboard"])
    log_every: int = 10  # updates
    progress: bool = True


@dataclass
class ProfileConfig:
    """What is measured, how long, and where the records go."""

    runtimes: list[str] = field(default_factory=lambda: ["eager"])  # see zoo.runtimes
    batch_sizes: list[int] = field(default_factory=lambda: [1])
    image_sizes: list[Any] | None = None  # numbers or [height, width]; null: each model's own
    fused: Any = "both"  # true: re-parameterised, false: as built, both: one row each
    threads: int | None = None  # that share a call; null: as many as PyTorch uses
    dtype: str = "float32"  # float32, bfloat16, float16
    channels_last: bool = False  # images and weights as NHWC in memory
    layers: bool = False  # time every layer, too, in the runtime eager
    min_runs: int = 50  # calls that are kept at least
    min_time: float = 1.0  # seconds measured at least, each
    max_time: float = 15.0  # seconds measured at most, each; this bound wins
    out: str | None = None  # a folder or <name>.jsonl, goes on if it exists; null: new, in runs/


@dataclass
class ExportConfig:
    """How an artefact is made, and where."""

    out: str | None = None  # a file or a folder; null: artefacts/<model>/<format>
    image_size: Any = None  # one number or [height, width]; null: the model's own
    batch: Any = None  # dynamic, or the one size of a batch; null: dynamic where the format can
    dynamic_size: bool = False  # any image size, compared at others than image_size
    opset: int | None = None  # of onnx and openvino; null: the exporter's own
    half: bool = False  # weights in float16
    preprocess: bool = False  # take pixels as bytes and normalise them in the artefact
    postprocess: bool = False  # give probabilities of classes, or the class of every pixel
    fuse: bool = True  # re-parameterise first
    overwrite: bool = False  # replace an artefact that is already there


@dataclass
class QuantizeConfig:
    """How an artefact is brought to int8, and what is found out about that."""

    int8: bool = False  # write the artefact in int8; the other keys are for that
    images: int = 256  # of the training images, without augmentation, to calibrate on
    keep_float: int = 0  # so many layers stay in float: those that cost the most accuracy
    sensitivity: bool = False  # measure what each layer costs, and write the table


@dataclass
class TrainRun:
    """Everything that `zoo train` reads."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass
class EvalRun:
    """Everything that `zoo eval` reads."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    weights: str | None = None  # run folder, checkpoint, published file or its address
    artefact: str | None = None  # instead of a model: an exported file or its folder
    runtime: str | None = None  # that runs the artefact; null: the one it was compared in
    batch_size: int = 64
    fused: bool = False  # evaluate the re-parameterised model
    device: str = "auto"
    out: str | None = None  # folder of the report; null: next to what is evaluated


@dataclass
class BenchmarkRun:
    """Everything that `zoo benchmark` reads."""

    model: ModelConfig = field(default_factory=ModelConfig)
    models: list[str] = field(default_factory=list)  # several names or globs instead of `model`
    profile: ProfileConfig = field(default_factory=ProfileConfig)


@dataclass
class ExportRun:
    """Everything that `zoo export` reads."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)  # int8 is calibrated and evaluated on it
    weights: str | None = None  # run folder, checkpoint, published file or its address
    format: Any = "onnx"  # one format or a list of them; see docs/export.md
    export: ExportConfig = field(default_factory=ExportConfig)
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)


RUNS: dict[str, type] = {
    "train": TrainRun,
    "eval": EvalRun,
    "benchmark": BenchmarkRun,
    "export": ExportRun,
}
