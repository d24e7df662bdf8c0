"""VideoFolderDataModule: keyed batches of clips from folders of frames, resumable at any step."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from lit_vision.data.batch import Batch
from lit_vision.data.datamodule import ImageFolderDataModule
from lit_vision.data.datasets import ImageReader
from lit_vision.data.folder import Folder
from lit_vision.data.holdout import check_groups, folder_groups, leave_out_unlabeled
from lit_vision.data.labeled_folder import draw_splits
from lit_vision.data.splits import evenly_spaced
from lit_vision.data.video.clip_frames import ClipFrames
from lit_vision.data.video.frame_folder import FRAME_TIMES, VideoFolder, VideoFrames, read_frame_times, scan_videos
from lit_vision.data.video.segment_table import open_segments
from lit_vision.data.views.decode import ImageDecodeError, read_header
from lit_vision.data.views.image_size import height_and_width
from lit_vision.data.views.keyed_rng import PhiloxStreams
from lit_vision.data.views.pixel_values import PixelFormat
from lit_vision.data.views.views import ImageViewsFunction
from lit_vision.errors import UsageError, UserError

MOST_CLIPS = 1000  # of a video in evaluation
_MEASURED = 32  # videos whose rate is measured
_DOMAIN = 0x636C6970  # "clip": separates the starts of clips from other uses of one seed


class VideoFolderDataModule(ImageFolderDataModule):
    """Batches of clips (see batch.py): `images` (B, V, T, H, W, C), `label`, `key`, from folders of frames.

    Layouts: `ROOT/<split>/<class>/<video>/*.jpg` (frame_folder.py), or a table of videos and parts of them
    (segment_table.py). `lit-vision data frames` makes such folders of video files. A sample is a video, or a part of
    one, and its index counts them in sorted order. In training it gives one clip (V = 1) whose start is drawn by
    (seed, key); in validation and testing `clips_per_video` clips, evenly placed, which are the views (V of them): a
    batch then has batch_size x clips_per_video clips. All frames of a clip get the same crop, flip, color factors and
    other augmentations. The pixels are a function of (seed, key); order of samples, resuming and loaders are those of
    ImageFolderDataModule.

    A video that is too short repeats its last frame. A broken frame makes its video a broken image: another video
    stands in for it, or it stops the run (`on_bad_image`).

    Args:
        root: the folder.
        frames_per_clip: T.
        frame_stride: distance of two frames of a clip, in frames.
        fps: frames of a clip per second of its video, by the time stamps that `lit-vision data frames` wrote; instead
            of frame_stride.
        sampling: "dense", as said by frame_stride or fps; or "uniform", one frame from each of T equal parts of the
            video (see `ClipFrames`).
        clips_per_video: clips of each video in evaluation.
        img_size: of the views, pixels: side of a square, or [height, width].
        batch_size: clips per device and batch in training, videos in evaluation.
        train_view, eval_view: as in ImageFolderDataModule.
        crop_scale, crop_aspect, flip, rotation, scale, brightness, contrast, saturation, hue, grayscale, rand_augment,
            random_erasing: options of the training view. `train` mirrors half of the clips: set flip to 0 where left
            and right make a difference.
        crop_pct: option of the evaluation view.
        train_split, val_split, test_split: names of the splits' folders.
        label_file: the table, CSV or JSON lines.
        path_column, label_column, split_column: its columns, if they have unusual names.
        group_by: what must not stand on both sides of a split: a column of the table, or the level of a folder in the
            videos' paths (-1: the folder that holds the video). Parts of one video never do.
        val_fraction, test_fraction: share of the training videos that becomes a split that is not there, drawn by
            label_seed; whole groups with group_by.
        labels, shots, label_seed, split_file: as in ImageFolderDataModule; they count videos.
        copies, seed, num_workers, on_bad_image, range, channels, hash_content: as in ImageFolderDataModule.
        quarantine: file with paths to leave out; a listed frame leaves out its video.

    Raises:
        UsageError: an argument is out of its range.
        UserError: the view does not have an option.
    """

    def __init__(
        self,
        root: str,
        *,
        frames_per_clip: int = 8,
        frame_stride: int = 1,
        fps: float | None = None,
        sampling: str = "dense",
        clips_per_video: int = 1,
        img_size: int | list[int] = 224,
        batch_size: int = 16,
        train_view: str = "train",
        eval_view: str = "eval",
        crop_scale: list[float] | None = None,
        crop_aspect: list[float] | None = None,
        flip: float | None = None,
        rotation: float | None = None,
        scale: list[float] | None = None,
        brightness: float | None = None,
        contrast: float | None = None,
        saturation: float | None = None,
        hue: float | None = None,
        grayscale: float | None = None,
        rand_augment: str | None = None,
        random_erasing: float | None = None,
        crop_pct: float | None = None,
        train_split: str = "train",
        val_split: str = "val",
        test_split: str = "test",
        label_file: str | None = None,
        path_column: str | None = None,
        label_column: str | None = None,
        split_column: str | None = None,
        group_by: int | str | None = None,
        val_fraction: float = 0.0,
        test_fraction: float = 0.0,
        labels: int | float | None = None,
        shots: int | None = None,
        label_seed: int = 0,
        split_file: str | None = None,
        copies: int = 1,
        seed: int = 0,
        num_workers: int | str = "auto",
        on_bad_image: str = "auto",
        range: list[float] | None = None,
        channels: int = 3,
        quarantine: str | None = None,
        hash_content: bool = False,
    ):
        super().__init__(
            root,
            img_size=img_size,
            batch_size=batch_size,
            train_view=train_view,
            eval_view=eval_view,
            crop_scale=crop_scale,
            crop_aspect=crop_aspect,
            flip=flip,
            rotation=rotation,
            scale=scale,
            brightness=brightness,
            contrast=contrast,
            saturation=saturation,
            hue=hue,
            grayscale=grayscale,
            rand_augment=rand_augment,
            random_erasing=random_erasing,
            crop_pct=crop_pct,
            train_split=train_split,
            val_split=val_split,
            test_split=test_split,
            label_file=label_file,
            path_column=path_column,
            label_column=label_column,
            split_column=split_column,
            group_by=group_by,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            labels=labels,
            shots=shots,
            label_seed=label_seed,
            split_file=split_file,
            copies=copies,
            seed=seed,
            num_workers=num_workers,
            in_memory=False,
            on_bad_image=on_bad_image,
            range=range,
            channels=channels,
            quarantine=quarantine,
            hash_content=hash_content,
        )
        self.clip_frames = ClipFrames(frames_per_clip, frame_stride, fps, sampling)
        if not 1 <= clips_per_video <= MOST_CLIPS:
            raise UsageError(f"data.clips_per_video: {clips_per_video}; give 1 to {MOST_CLIPS}")
        self.frames_per_clip, self.frame_stride, self.fps, self.sampling = frames_per_clip, frame_stride, fps, sampling
        self.clips_per_video = clips_per_video

    def _open(self) -> Folder:
        """Return the videos with their splits and labels."""
        options, groups = self.label_options, None
        if options.file is None:
            folder = scan_videos(self.root, *self.split_names.values())
        else:
            folder = open_segments(self.root, self.split_names, options)
            groups = folder.groups
        if isinstance(options.group_by, int):
            groups = dict(
                zip(folder.segments, folder_groups([s.video for s in folder.segments.values()], options.group_by))
            )
        if groups is not None:
            check_groups(folder, groups)
            folder.groups = groups
            # a group for each video would only take the balance of the classes from the splits that are drawn
            groups = groups if len(set(groups.values())) < len(groups) else None
        draw_splits(folder, self.split_names, options, groups)
        leave_out_unlabeled(folder, self.split_names["train"])
        if self.fps is not None:
            _require_times(folder)
        return folder

    def example_batch(self, num_labels: int = 1) -> Batch:
        """Return a training batch of one black clip; no data are read."""
        shape = (1, 1, self.frames_per_clip, *height_and_width(self.img_size), self.channels)
        return {
            "images": torch.zeros(shape, dtype=torch.uint8),
            "label": torch.zeros(1, dtype=torch.int64),
            "key": torch.zeros(1, 3, dtype=torch.int64),
        }

    @property
    def frames_per_second(self) -> float | None:
        """Rate of the training videos' frames, the median of a sample of them; None if one has no FRAME_TIMES.

        One whose times are damaged is left out: a training that counts frames does not need them. A model keeps the
        rate, so that prediction cuts its clips from other videos at the same one.
        """
        folder = self._scanned_folder()
        assert isinstance(folder, VideoFolder)
        videos = folder.frames.videos
        rates = []
        for row in evenly_spaced(len(videos), _MEASURED):
            names = folder.frames.names(videos[row])
            if not os.path.isfile(folder.root / videos[row] / FRAME_TIMES):
                return None
            try:
                times = read_frame_times(folder.root / videos[row], names)
            except ImageDecodeError:
                continue
            if len(times) > 1:
                rates.append((len(times) - 1) / (times[-1] - times[0]))
        return round(float(np.median(rates)), 6) if rates else None

    def _reader(self, *arguments: Any) -> ImageReader:
        return ClipReader(*arguments)

    def _views(self, train: bool, pixel_format: PixelFormat) -> ImageViewsFunction:
        views = super()._views(train, pixel_format)
        return ClipViews(views, self.clip_frames, self.seed if train else None, self.clips_per_video)


class ClipReader(ImageReader):
    """Reader of the videos of one split, with the rule for broken images: a video with a broken frame is one."""

    def _transformed(self, index: int, transform: Callable[[Any], Any]) -> Any:
        assert isinstance(self.folder, VideoFolder)
        return transform(self.folder.open(self.paths[index]))

    def _advice(self) -> str:
        """Return what to do about many videos with broken frames; doctor would take like frames for duplicates."""
        return "extract their frames again, or list them in a file and name it by data.quarantine"


class ClipViews:
    """Views of the clips of a video under a key.

    Args:
        views: of an image file; its parameters follow from the key and the size of the image alone, so that all frames
            of a clip have the same.
        clip_frames: rule of a clip's frames.
        seed: of the starts; None places `clips` clips evenly, whatever the key.
        clips: of each video, without a seed.
    """

    def __init__(self, views: ImageViewsFunction, clip_frames: ClipFrames, seed: int | None, clips: int = 1):
        self.views, self.clip_frames, self.clips = views, clip_frames, clips
        self.streams = None if seed is None else PhiloxStreams(seed, _DOMAIN)

    def __call__(self, video: VideoFrames, epoch: int, index: int, copy: int = 0) -> np.ndarray:
        """Return the clips of a video: (V, T, height, width, 3) uint8.

        Raises:
            ImageDecodeError: a frame is broken, missing or of another size than the first; it names the file.
        """
        if self.streams is None:
            places = self.clip_frames.evenly_placed(self.clips)
        else:
            places = [self.streams.uniforms(epoch, index, copy, 0, self.clip_frames.draws)]
        times = video.times() if self.clip_frames.fps is not None else None
        clips = [self.clip_frames.numbers(len(video), place, times) for place in places]
        seen: dict[int, np.ndarray] = {}  # a frame may stand in a clip, or in several, more than once
        size: tuple[int, int] | None = None
        for number in sorted({number for clip in clips for number in clip}):
            path = f"{video.folder.root}/{video.name(number)}"
            try:
                data = video.read(number)
                header = read_header(data)
                if size not in (None, (header.width, header.height)):
                    raise ImageDecodeError(
                        f"is {header.width} x {header.height}, other frames are {size[0]} x {size[1]}"
                    )
                size = header.width, header.height
                seen[number] = self.views(data, epoch, index, copy)
            except ImageDecodeError as error:
                raise ImageDecodeError(f"{path}: {error}", error.kind) from None
            except OSError as error:
                raise ImageDecodeError(
                    f"{path}: {error.strerror}; restore the file, or extract the frames again"
                ) from None
        return np.concatenate([np.stack([seen[number] for number in clip], axis=1) for clip in clips])


def _require_times(folder: VideoFolder) -> None:
    """Raise a UserError unless each video has its file of time stamps."""
    missing = [video for video in folder.frames.videos if not os.path.isfile(folder.root / video / FRAME_TIMES)]
    if missing:
        raise UserError(
            f"{folder.root / missing[0] / FRAME_TIMES}: no such file ({len(missing)} of {len(folder.frames.videos)} "
            "videos have none), but data.fps needs time stamps; extract the frames by `lit-vision data frames`, or set "
            "data.frame_stride instead"
        )
