"""Draw detections over an image with Pillow."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from zoo.deploy.detections import Detections

SHOWN_SCORE = 0.3  # detections below it are not drawn or listed

# Colours that stand out on photographs, one after the other for the classes.
COLOURS = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0),
    (204, 121, 167), (255, 255, 255),
)  # fmt: skip


def draw(
    image: Image.Image, found: Detections, names: Sequence[str] | None, *, scores: bool = True
) -> Image.Image:
    """Return a copy of an image, RGB, with boxes, class names and scores.

    Args:
        image: RGB or grey.
        found: The detections; those below `SHOWN_SCORE` are left out.
        names: Class names; None to write class numbers.
        scores: Whether to write the scores.
    """
    picture = image.convert("RGB")
    pen = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=max(10, min(picture.size) // 28))
    width = max(1, min(picture.size) // 150)
    order = [index for index in range(len(found)) if found.scores[index] >= SHOWN_SCORE]
    for index in reversed(order):  # the highest score on top
        number = int(found.classes[index])
        colour = COLOURS[number % len(COLOURS)]
        box = [
            float(share) * side
            for share, side in zip(found.boxes[index], (*picture.size, *picture.size), strict=True)
        ]
        # Pillow's corners are pixels that it paints, ours are borders between pixels.
        box = [box[0], box[1], max(box[2] - 1, box[0]), max(box[3] - 1, box[1])]
        pen.rectangle(box, outline=colour, width=width)
        text = names[number] if names else str(number)
        text += f" {found.scores[index]:.2f}" if scores else ""
        area = pen.textbbox((box[0], box[1]), text, font=font, anchor="lb")
        below = max(0.0, -area[1])  # keep the text inside the image
        pen.rectangle([area[0], area[1] + below, area[2], area[3] + below], fill=colour)
        pen.text((box[0], box[1] + below), text, fill=(0, 0, 0), font=font, anchor="lb")
    return picture
