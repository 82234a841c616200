"""What made-up scenes are drawn with: a canvas, noise, cells, soft edges and light, for many parts at once.

Fields have shape (g, n, rows, columns): g parts, n instances; a size 1 is shared. Lengths are pixels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from calibrate.pretrain.dice import CountedDice, lattice, mix32, unit32

TURN = 2 * math.pi


def cover(distance: Tensor, soft: float | Tensor = 1.0) -> Tensor:
    """How much of a pixel lies inside, 0..1, from the signed distance (negative inside) in pixels."""
    return (0.5 - distance / soft).clamp_(0, 1)


def wave(phase: Tensor) -> Tensor:
    """A sine of period 1."""
    return torch.sin(phase * TURN)


def frac(x: Tensor) -> Tensor:
    """The part of x after its floor, 0..1."""
    return x - torch.floor(x)


def turned(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates seen from axes turned by angle (radians)."""
    c, s = torch.cos(angle), torch.sin(angle)
    return c * x + s * y, c * y - s * x


def box(
    x: Tensor, y: Tensor, half_x: Tensor | float, half_y: Tensor | float, corner: Tensor | float
) -> Tensor:
    """Signed distance to a rectangle with rounded corners."""
    ax, ay = x.abs() - half_x + corner, y.abs() - half_y + corner
    return torch.hypot(ax.clamp_min(0), ay.clamp_min(0)) + torch.maximum(ax, ay).clamp_max(0) - corner


def smooth(low: float | Tensor, high: float | Tensor, x: Tensor) -> Tensor:
    """0 below low, 1 above high, smooth between."""
    t = ((x - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def profile(x: Tensor, key: Tensor) -> Tensor:
    """Smooth random values in -1..1 along a line, one knot for each unit of x."""
    knot = torch.floor(x)
    i, t = knot.to(torch.int32), x - knot
    a, b = unit32(mix32(mix32(i) ^ key)), unit32(mix32(mix32(i + 1) ^ key))
    return torch.lerp(a, b, t * t * (3 - 2 * t)) * 2 - 1


def hashed(i: Tensor, key: Tensor) -> Tensor:
    """One random value in 0..1 for each whole number in i (float)."""
    return unit32(mix32(mix32(i.to(torch.int32)) ^ key))


def hashed2(i: Tensor, j: Tensor, key: Tensor) -> Tensor:
    """One random value in 0..1 for each cell (i, j) (float)."""
    return unit32(lattice(i.to(torch.int32), j.to(torch.int32), key))


def hills(x: Tensor, y: Tensor, key: Tensor) -> Tensor:
    """Smooth random values in -1..1 on the plane, one knot for each unit; the same wherever the part lies."""
    fx, fy = torch.floor(x), torch.floor(y)
    i, j, tx, ty = fx.to(torch.int32), fy.to(torch.int32), x - fx, y - fy
    tx, ty = tx * tx * (3 - 2 * tx), ty * ty * (3 - 2 * ty)
    top = torch.lerp(unit32(lattice(i, j, key)), unit32(lattice(i + 1, j, key)), tx)
    low = torch.lerp(unit32(lattice(i, j + 1, key)), unit32(lattice(i + 1, j + 1, key)), tx)
    return torch.lerp(top, low, ty) * 2 - 1


def cells(x: Tensor, y: Tensor, key: Tensor, jitter: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distance to the nearest and the second seed point (cell units), and the nearest one's own value 0..1.

    One point a unit square, jitter 0 (a lattice) to 1. Worley 1996, "A cellular texture basis function".
    """
    i, j = torch.floor(x), torch.floor(y)
    first = second = torch.full((1, 1, 1, 1), 9.0, device=x.device)
    own = torch.zeros(1, 1, 1, 1, device=x.device)
    fx, fy, i, j = x - i - 0.5, y - j - 0.5, i.to(torch.int32), j.to(torch.int32)
    for dj in (-1, 0, 1):
        for di in (-1, 0, 1):
            h = lattice(i + di, j + dj, key)
            px = ((h & 0xFFFF).to(torch.float32) * 2.0**-16 - 0.5) * jitter + (di - fx)
            py = (((h >> 16) & 0xFFFF).to(torch.float32) * 2.0**-16 - 0.5) * jitter + (dj - fy)
            d = px * px + py * py
            nearer = d < first
            second = torch.minimum(second, torch.maximum(first, d))
            own = torch.where(nearer, unit32(h * 747796405), own)
            first = torch.minimum(first, d)
    return torch.sqrt(first), torch.sqrt(second), own


class Canvas:
    """n pictures of each of g parts; image is float32 (g, n, 3, rows, columns), about 0..1 until exposed."""

    def __init__(
        self, seeds: Tensor, salt: int, instances: int, size: int, free: float | None = None
    ) -> None:
        self.free = free  # instead of what the family gives place()
        self.dice = CountedDice(seeds, salt, instances)
        self.size, self.device = size, seeds.device
        at = torch.arange(size, device=seeds.device, dtype=torch.float32) - (size - 1) / 2
        self.x, self.y = at.view(1, 1, 1, size), at.view(1, 1, size, 1)
        self.colourful = 1 - self.dice.odds(0.5)
        self.azimuth, self.height = self.dice.part(0, TURN), self.dice.part(0.5, 1.3)
        self.image = torch.zeros(len(seeds), instances, 3, size, size, device=seeds.device)

    def lie(self, upright: float, tilt: float) -> Tensor:
        """The part's angle, upright with this chance, up to tilt off in every instance."""
        angle = self.dice.part(0, TURN)
        straight = torch.round(angle / TURN * 4) * TURN / 4 + (angle - math.pi) * 0.005
        return torch.where(self.dice.odds(upright) > 0, straight, angle) + self.dice.each(-tilt, tilt)

    def roam(self, tilt: float = 0.0) -> tuple[Tensor, Tensor]:
        """Coordinates (pixels) of another patch of the same material in every instance, up to tilt askew."""
        d = self.dice
        return turned(self.x + d.each(-4000, 4000), self.y + d.each(-4000, 4000), self.lie(0.5, tilt))

    def place(
        self, shift: float = 0.03, turn: float = 0.03, free: float = 0.0, upright: float = 0.6
    ) -> tuple[Tensor, Tensor]:
        """Coordinates fixed to the part, pixels from its middle; off by up to shift (half sides) and turn.

        With chance free the part lies at any angle in every instance, as screws do on a belt.
        """
        d, half = self.dice, self.size / 2
        chance = free if self.free is None else self.free
        angle = self.lie(upright, turn) + d.odds(chance) * d.each(0, TURN)
        return turned(self.x + half * d.each(-shift, shift), self.y + half * d.each(-shift, shift), angle)

    def colour(self, low: float = 0.08, high: float = 0.92, chroma: float = 0.35) -> Tensor:
        """A colour of the part, (g, 1, 3, 1, 1), with a level in low..high; grey where the part is grey."""
        d = self.dice
        level, hue = d.part(low, high), d.part(0, TURN)
        strength = chroma * d.part(0, 1) ** 2 * self.colourful * (1 - (2 * level - 1).abs() * 0.6)
        shifts = [torch.cos(hue - TURN * k / 3) for k in range(3)]
        return (level + strength * torch.cat(shifts, dim=1)).clamp(0.01, 1).unsqueeze(1)

    def fill(self, colour: Tensor) -> None:
        """Everything this colour."""
        self.image = colour.expand_as(self.image).clone()

    def paint(self, mask: Tensor, colour: Tensor) -> None:
        """This colour where mask (a field, 0..1) is 1."""
        self.image = self.image + mask.unsqueeze(2) * (colour - self.image)

    def scale(self, factor: Tensor) -> None:
        """Brighter or darker by a field."""
        self.image = self.image * factor.unsqueeze(2)

    def add(self, field: Tensor) -> None:
        """The same grey on top of every channel."""
        self.image = self.image + field.unsqueeze(2)

    def white(self, key: Tensor) -> Tensor:
        """Uniform white noise, mean 0, standard deviation 1."""
        index = torch.arange(self.size * self.size, device=self.device, dtype=torch.int32)
        grid = mix32(index).view(1, 1, self.size, self.size)
        return (unit32(mix32(grid ^ key)) - 0.5) * math.sqrt(12)

    def noise(
        self,
        key: Tensor,
        fine: Tensor | float,
        coarse: Tensor | float,
        slope: Tensor | float = 1.0,
        stretch: Tensor | float = 1.0,
        angle: Tensor | float = 0.0,
    ) -> Tensor:
        """Gaussian noise, mean 0, deviation 1, wavelengths fine to coarse (pixels), amplitude 1/f**slope.

        Drawn out by stretch along angle (radians, 0 along the rows).
        """
        fy = torch.fft.fftfreq(self.size, device=self.device).view(1, 1, -1, 1)
        fx = torch.fft.rfftfreq(self.size, device=self.device).view(1, 1, 1, -1)
        along, across = turned(fx, fy, torch.as_tensor(angle, device=self.device))
        f2 = (along * stretch) ** 2 + across**2
        gain = torch.exp(-f2 * (fine * fine)) * (1 - torch.exp(-f2 * (coarse * coarse)))
        gain = gain * (f2 + 1e-6) ** (-0.5 * slope)
        gain = gain / (gain.square().mean(dim=(-2, -1), keepdim=True).sqrt() + 1e-9)
        return torch.fft.irfft2(torch.fft.rfft2(self.white(key)) * gain, s=(self.size, self.size))

    def grain(self, amount: Tensor, fine: Tensor | float = 1.2, coarse: Tensor | float = 6.0) -> None:
        """Fine texture of the surface, another one in every instance."""
        self.scale(1 + amount * self.noise(self.dice.each_key(), fine, coarse, 0.5))

    def light(self, height: Tensor, gloss: Tensor | float = 0.0, sharp: Tensor | float = 12.0) -> None:
        """Shade the image by a height field (pixels): Lambert relative to flat ground, Blinn's highlight."""
        padded = torch.nn.functional.pad(height, (1, 1, 1, 1), mode="replicate")
        dx = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) * 0.5
        dy = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) * 0.5
        steep = torch.rsqrt(dx * dx + dy * dy + 1)
        lx, ly = turned(torch.cos(self.height), 0 * self.height, -self.azimuth)
        lz = torch.sin(self.height)
        facing = (lz - lx * dx - ly * dy) * steep
        self.scale(0.25 + 0.75 * (facing / lz).clamp(0, 2.2))
        hz = lz + 1
        half = (hz - lx * dx - ly * dy) * steep * torch.rsqrt(lx * lx + ly * ly + hz * hz)
        self.add(gloss * half.clamp(0, 1) ** (sharp * 4))

    def exposed(self) -> Tensor:
        """The pictures as a camera gives them, float32 0..255: uneven light, contrast, exposure, noise."""
        d, reach = self.dice, 2.0 / self.size
        tilt = d.part(0, 0.18) * turned(self.x * reach, self.y * reach, self.azimuth)[0]
        fall = d.part(0, 0.15) * ((self.x * reach) ** 2 + (self.y * reach) ** 2)
        self.scale((1 + tilt - fall) * d.each(0.97, 1.03) * d.part(0.85, 1.1))
        contrast, lift = d.log(0.45, 1.12), d.part(-0.5, 0.5)
        pivot = 0.45 + lift * 0.25 * (1.3 - contrast)
        noise = self.noise(d.each_key(), 0.6, 3.0, 0.0) * d.part(0.002, 0.02)
        self.image = (self.image - 0.45) * contrast.unsqueeze(2) + (pivot + noise).unsqueeze(2)
        return self.image.clamp_(0, 1).mul_(255)
