"""All settings of the commands, with types and defaults: one dataclass for each group.

`zoo.command_line` composes the settings of a command from `zoo/configs`, the command line and these
defaults. An unknown key or a value of the wrong type is an error. The comments are printed by
`--help`: above a field, for it and those that follow; behind a field, for it alone. This module
imports nothing from `zoo`.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class ModelConfig:
    """Group `model`: the arguments of `zoo.create_model`."""

    name: str = "efficientformer_l1"  # a name that `zoo list` prints, or timm/<name>
    encoder: str | None = None  # backbone of a decoder such as unet, a detector or mixvpr
    pretrained: bool = False  # start from published weights, downloaded once
    checkpoint_path: str | None = None  # start from a run folder, or a file or URL of weights
    base: str | None = None  # adapters: run or file of their base; null: where training found it
    num_classes: int | None = None  # null: number of classes of the data
    in_chans: int | None = None  # null: number of channels of the data
    img_size: Any = None  # only for models whose parameters depend on the image size
    drop_rate: float = 0.0  # dropout in front of the classifier
    drop_path_rate: float = 0.0  # stochastic depth: probability of skipping the last block
    global_pool: str | None = None  # how features are pooled for the classifier: avg, max, ...
    kwargs: dict[str, Any] = field(default_factory=dict)  # arguments of a single model family


@dataclass
class DataConfig:
    """Group `data`: the data set, its preprocessing and its augmentation."""

    name: str = "digits"  # name of the data set
    root: str | None = None  # folder of the data; cache folder for hfds/<name>
    download: bool = False  # download CIFAR, VOC or Oxford Pets if they are missing
    train_split_name: str | None = None  # folder or split to train on
    val_split_name: str | None = None  # folder or split to validate on
    val_split: float | None = None  # without a validation split: share of training images to use
    folds: int | None = None  # cross-validation: divide the training images into so many parts
    fold: int | None = None  # the part to validate on, from 0; train.sweep: null trains all
    labels: str | None = None  # multilabel: CSV of image, labels (and split); null: folders
    split_file: str | None = None  # folder: CSV of the columns split (train or val) and image
    input_key: str | None = None  # hfds, wds: column or file extension of the image
    target_key: str | None = None  # hfds, wds: column or field of the label
    num_classes: int | None = None  # required for wds and folder_segmentation
    class_names: list[str] | None = None  # folder_segmentation, multilabel: names in order
    palette: Any = None  # folder_segmentation: [r, g, b] of each class in coloured masks
    train_images: int | None = None  # digits_*, photos_*: images per epoch
    val_images: int | None = None  # digits_*: validation images

    image_size: Any = None  # one number for a square, or [height, width], in pixels
    in_chans: int = 3  # 3 (colour) or 1 (grey)
    mean: list[float] | None = None  # mean of each channel, for values in 0..1
    std: list[float] | None = None  # standard deviation of each channel, for values in 0..1
    interpolation: str | None = None  # nearest, bilinear, bicubic, box, hamming, lanczos
    channel_order: str | None = None  # RGB or BGR, the order of mean and std, too
    crop_pct: float | None = None  # evaluation: side of the crop over side of the resized image

    # training only, with timm's names and meanings
    train_interpolation: str | None = None  # interpolation or random; null: same as interpolation
    scale: list[float] | None = None  # random resized crop: range of the area
    ratio: list[float] | None = None  # random resized crop: range of the aspect ratio
    hflip: float | None = None  # probability of a horizontal flip
    vflip: float | None = None  # probability of a vertical flip
    color_jitter: Any = None  # one strength, or [brightness, contrast, saturation(, hue)]
    auto_augment: str | None = None  # e.g. rand-m9-mstd0.5-inc1, augmix-m3-w3, original
    re_prob: float | None = None  # random erasing: probability
    re_mode: str | None = None  # random erasing: const, rand or pixel
    re_count: int | None = None  # random erasing: largest number of boxes

    num_workers: int | None = None  # loader processes; 0: load in the main process
    cache: bool = False  # keep every decoded image in memory
    skip_corrupt: bool = False  # skip unreadable images instead of raising an error


@dataclass
class TrainConfig:
    """Group `train`: how a model is trained."""

    # length
    epochs: int = 8  # passes over the training images
    stop_at_epoch: int | None = None  # stop early, to resume later; the schedule still has `epochs`
    patience: int | None = None  # end after so many epochs without a better one
    max_time: str | None = None  # end after this time, such as 45m or 1h30m; it can be resumed
    limit_train_batches: int | None = None  # batches per epoch, for a smoke test
    limit_val_batches: int | None = None  # batches per validation, for a smoke test
    dry_run: bool = False  # one update and one validation batch, without a run folder
    find_lr: bool = False  # try all learning rates in 100 updates, and draw the losses
    resume: str | None = None  # run folder or checkpoint of the run to continue
    best: str | None = None  # selects best.ckpt: top1, map, macro_f1, loss; null: the task's score

    # an update uses batch_size x accumulate x processes images
    batch_size: Any = 16  # images per process; auto: the largest that fits, found by doubling
    accumulate: int = 1  # batches per update

    # optimizer and schedule, with the names and arguments of timm's factories
    optimizer: str = "adamw"  # adamw, sgd, lamb, ...
    optimizer_args: dict[str, Any] = field(default_factory=dict)  # such as {betas:[0.9,0.99]}
    lr: float = 2e-3  # learning rate for updates of `lr_base_batch` images
    lr_base_batch: int = 16  # images per update that `lr` is meant for
    lr_scale: str = "sqrt"  # scaling with the images per update: linear, sqrt (for Adam), none
    weight_decay: float = 0.05  # except vectors and parameters in model.no_weight_decay()
    layer_decay: float | None = None  # factor of the learning rate per layer, from head to input
    scheduler: str = "cosine"  # cosine, step, multistep, poly, constant, none, ...
    scheduler_args: dict[str, Any] = field(default_factory=dict)  # such as {decay_rate:0.5}
    warmup_epochs: float = 1.0  # epochs over which the learning rate rises to `lr`
    warmup_lr: float = 1e-6  # learning rate at the start
    min_lr: float = 1e-6  # learning rate at the end
    clip_grad: float | None = None  # largest norm or value of the gradient; null: no clipping
    clip_mode: str = "norm"  # norm, value, agc
    freeze: list[str] = field(default_factory=list)  # globs of modules, all-but-head, all-but-norms
    freeze_epochs: int | None = None  # train the frozen parameters after so many epochs
    adapt: str = "none"  # adapters beside a frozen base: norms, ssf, lora, linear
    adapt_args: dict[str, Any] = field(default_factory=dict)  # rank, alpha, std, where: [globs]

    # loss, mixing, distillation
    loss: str | None = None  # null: that of the task
    loss_args: dict[str, Any] = field(default_factory=dict)  # arguments of that loss
    class_weights: Any = None  # balanced, or a weight for each class in order; null: all equal
    sampler: str = "shuffle"  # shuffle, or balanced: images of rare classes come more often
    label_smoothing: float = 0.0  # share of each target that is spread over all classes
    mixup: float = 0.0  # alpha of mixup; 0: none
    cutmix: float = 0.0  # alpha of cutmix; 0: none
    mixup_prob: float = 1.0  # probability of mixing a batch
    mixup_switch_prob: float = 0.5  # probability of cutmix instead of mixup, if both are enabled
    mixup_off_epoch: int = 0  # stop mixing at this epoch; 0: never
    distill: str = "none"  # none, hard, soft, stored (from a folder of `zoo store-logits`)
    distill_teacher: str | None = None  # name of a model for create_model
    distill_teacher_weights: str | None = None  # run folder or file; null: published weights
    distill_store: str | None = None  # stored: the folder
    distill_alpha: float = 0.5  # weight of the teacher's loss
    distill_tau: float = 1.0  # temperature of soft distillation

    # averaged experts (docs/methods/experts.md): {number:4} copies of every second MLP, whose
    # weights move towards each other by a share that rises to {share:0.01}; {every:2}
    experts: dict[str, Any] = field(default_factory=dict)  # such as {number:4}; empty: none
    qat: bool = False  # quantisation-aware training, from trained weights (docs/qat.md)

    # pruning during training; zoo prune with prune.allocation=zeros cuts what became zero
    shrink: float = 0.0  # share of hidden channels and heads that become zero
    shrink_score: str = "hesso"  # which are least important: hesso, magnitude, norm
    shrink_periods: int = 5  # the share grows in so many steps
    shrink_until: float = 0.6  # share of the training after which all are zero

    # one training for several sizes; zoo prune with prune.allocation=nested takes one out
    elastic: list[float] = field(default_factory=list)  # shares of hidden channels: [0.25,0.5]

    # exponential moving average of the weights
    ema_decay: float = 0.0  # 0: no averaging
    ema_warmup: bool = True  # start with a lower decay

    # machine
    accelerator: str = "auto"  # auto, cpu, cuda, mps
    devices: Any = "auto"  # processes on this machine; torchrun sets the number itself
    num_nodes: int = 1  # number of machines
    strategy: str = "auto"  # auto, ddp
    precision: str = "32"  # 32, bf16, fp16
    sync_bn: bool = False  # synchronise batch norms between GPUs
    channels_last: bool = True  # images and weights as NHWC in memory
    compile: bool = False  # use torch.compile
    seed: int = 0  # of weights, order of images and augmentation
    deterministic: bool = False  # raise an error for operators that are not reproducible

    # output
    out: str = "runs"  # parent of the run folder
    sweep: str | None = None  # folder of many runs: a=1,2 is one run for each value
    # files of metrics, pictures of the run, services
    loggers: list[str] = field(default_factory=lambda: ["csv", "tensorboard"])  # wandb, mlflow, ...
    log_every: int = 10  # updates between values in TensorBoard
    progress: bool = True  # show a progress bar


@dataclass
class ProfileConfig:
    """Group `profile`: what to measure, for how long, and where to write the records."""

    runtimes: list[str] = field(default_factory=lambda: ["eager"])  # see zoo.runtimes
    batch_sizes: list[int] = field(default_factory=lambda: [1])  # images per call
    image_sizes: list[Any] | None = None  # numbers or [height, width]; null: each model's default
    fused: Any = "both"  # true: re-parameterised, false: as built, both: one row each
    threads: int | None = None  # threads per call; null: PyTorch's default
    dtype: str = "float32"  # float32, bfloat16, float16
    channels_last: bool = False  # images and weights as NHWC in memory
    layers: bool = False  # also time every layer, in the runtime eager
    pace: float | None = None  # also call so often per second; reports latency and lateness
    input: str = "tensor"  # jpeg: also time decoding, resizing and normalising, with their shares
    sustain: float | None = None  # also call for so many seconds; reports a curve over time
    min_runs: int = 50  # minimum number of timed calls
    min_time: float = 1.0  # minimum seconds per measurement
    max_time: float = 15.0  # maximum seconds per measurement; overrides both minimums
    out: str | None = None  # folder or <name>.jsonl; continued if it exists; null: new, in runs/


@dataclass
class ExportConfig:
    """Group `export`: how an artefact is exported, and where it is written."""

    out: str | None = None  # file or folder; null: in the run folder, or artefacts/<model>/<format>
    image_size: Any = None  # one number or [height, width]; null: the model's default
    batch: Any = None  # dynamic, or a static size; null: dynamic if the format supports it
    dynamic_size: bool = False  # accept any image size; also tested at sizes besides image_size
    opset: int | None = None  # onnx and openvino; null: the exporter's default
    half: bool = False  # weights in float16
    preprocess: bool = False  # take pixels as bytes and normalise them in the artefact
    postprocess: bool = False  # return class probabilities, the class of every pixel, or detections
    fuse: bool = True  # re-parameterise the model first
    overwrite: bool = False  # replace an existing artefact


@dataclass
class QuantizeConfig:
    """Group `quantize`: int8 quantisation of an artefact after training."""

    int8: bool = False  # quantise the artefact; the other keys require it
    images: int = 256  # training images to calibrate on, without augmentation
    keep_float: int = 0  # number of layers that stay in float, those that lose the most accuracy
    ranges: str | None = None  # minmax, percentile, mse, entropy; null: depends on the format
    repairs: list[str] = field(default_factory=lambda: ["biases"])  # equalize, rounding, biases
    max_drop: float | None = None  # largest loss of top-1 in points; searches, or stays in float
    sensitivity: bool = False  # measure how much accuracy each layer loses, and write a table


@dataclass
class PruneConfig:
    """Group `prune`: the latency to reach, and how units are chosen (docs/methods/pruning.md)."""

    latency_ms: float | None = None  # largest median latency of one image in ms
    runtime: str = "onnxruntime"  # where it is measured; see zoo.runtimes
    threads: int = 1  # threads per call
    score: str = "magnitude"  # importance of a unit: magnitude, hesso, norm
    allocation: str = "latency"  # latency, global, uniform; nested, zeros: see docs/methods
    drop_blocks: bool = True  # with allocation=latency: may leave out whole residual blocks
    images: int = 512  # training images for the statistics of batch norms, and for hesso
    out: str | None = None  # parent of the new folder; null: next to the run of the weights


@dataclass
class PickConfig:
    """What `zoo pick` looks for, and where it writes what it found."""

    ms: float = 0.0  # largest median latency of one image in ms
    top1: float | None = None  # least published top-1 accuracy in percent
    runtime: list[str] = field(default_factory=list)  # empty: those installed
    threads: int = 1  # threads per call
    size: list[int] = field(default_factory=list)  # sides of the image in pixels; empty: all
    int8: bool = False  # also consider int8 files
    licence: list[str] = field(default_factory=list)  # globs of allowed licences; empty: all
    data: str | None = None  # folder of images to rank the finalists on
    finalists: int | None = None  # null: 1, and 3 with `data`
    models: list[str] = field(default_factory=list)  # names or globs; empty: all
    out: str | None = None  # folder, continued if it exists; null: new, in runs/


@dataclass
class FitConfig:
    """What `zoo fit` trains on, and what the user decides."""

    photos: str = "photos"  # folder with a folder of images per class
    ms: float | None = None  # largest median latency of one image in ms; picks the model
    model: str | None = None  # name of the model, instead of `ms`
    weights: str | None = None  # file of weights to start from; null: the published ones
    size: int | None = None  # side of the image in pixels; null: that of the model
    epochs: int | None = None  # null: 20 from published weights, otherwise 60
    out: str | None = None  # folder of all results; null: runs/fit/<name of photos>


@dataclass
class StoreRun:
    """The settings of `zoo store-logits`; `data` and `seed` are those of the students."""

    model: ModelConfig = field(default_factory=ModelConfig)  # the teacher
    data: DataConfig = field(default_factory=DataConfig)
    weights: str | None = None  # run folder, checkpoint, or file or URL of the teacher's weights
    seed: int = 0  # train.seed of the students
    epochs: int = 8  # number of epochs to store; more are added to an existing store
    top: int | None = None  # largest probabilities to keep for each image; null: of all classes
    half: bool = True  # store float16; false: float32
    batch_size: int = 64  # images per call of the teacher
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    out: str = "logits"  # folder of the store


@dataclass
class TrainRun:
    """The settings of `train.py`."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass
class EvalRun:
    """The settings of `eval.py`."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    weights: str | None = None  # run folder, checkpoint, or file or URL of published weights
    artefact: str | None = None  # exported file or its folder, instead of a model
    runtime: str | None = None  # runtime of the artefact; null: the one it was tested in
    batch_size: int = 64  # images per call
    fused: bool = False  # evaluate the re-parameterised model
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    tta: str = "none"  # flip: average the probabilities with those of mirrored images
    train_images: bool = False  # also look for wrong labels among the training images
    against: str | None = None  # run or checkpoint to compare an artefact with; null: its own, none
    out: str | None = None  # folder of the report; null: next to the weights or the artefact


@dataclass
class BenchmarkRun:
    """The settings of `benchmark.py`."""

    model: ModelConfig = field(default_factory=ModelConfig)
    models: list[str] = field(default_factory=list)  # names or globs, instead of `model`
    profile: ProfileConfig = field(default_factory=ProfileConfig)


@dataclass
class ExportRun:
    """The settings of `export.py`."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)  # for int8; mean, std: for all artefacts
    weights: str | None = None  # run folder, checkpoint, or file or URL of published weights
    format: Any = "onnx"  # one format or a list; see docs/export.md
    export: ExportConfig = field(default_factory=ExportConfig)
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)


@dataclass
class PruneRun:
    """The settings of `zoo prune`."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)  # default: that of the run
    weights: str | None = None  # run folder or checkpoint
    prune: PruneConfig = field(default_factory=PruneConfig)


RUNS: dict[str, type] = {
    "train": TrainRun,
    "eval": EvalRun,
    "benchmark": BenchmarkRun,
    "export": ExportRun,
    "prune": PruneRun,
    "store-logits": StoreRun,
}
