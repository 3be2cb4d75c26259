//! Plots a curve as SVG with logarithmic axes, for light and dark pages.

use std::fmt::Write as _;

use crate::growth::Curve;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 400.0;
/// The margins around the plot: left, top, right, bottom.
const MARGIN: [f64; 4] = [70.0, 46.0, 120.0, 52.0];

/// Styles with colors for light and dark backgrounds.
const STYLE: &str = "
    text { font: 13px system-ui, sans-serif; fill: #24292f }
    .title { font-weight: 600; font-size: 14px }
    .grid { stroke: #d0d7de; stroke-width: 1 }
    .line { fill: none; stroke-width: 2 }
    .c0 { stroke: #0969da; fill: #0969da } .c1 { stroke: #bc4c00; fill: #bc4c00 } .c2 { stroke: #1a7f37; fill: #1a7f37 }
    .line.c0, .line.c1, .line.c2 { fill: none }
    text.c0, text.c1, text.c2 { stroke: none }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3 }
      .grid { stroke: #30363d }
      .c0 { stroke: #58a6ff; fill: #58a6ff } .c1 { stroke: #f0883e; fill: #f0883e } .c2 { stroke: #56d364; fill: #56d364 }
    }
";

/// An axis from one power of ten to another.
#[derive(Debug, Clone, Copy)]
struct Axis {
    low: i32,
    high: i32,
}

impl Axis {
    /// Creates an axis that contains all figures above zero.
    fn containing(figures: impl Iterator<Item = f64>) -> Self {
        let (mut low, mut high) = (i32::MAX, i32::MIN);
        for figure in figures.filter(|figure| *figure > 0.0) {
            low = low.min(figure.log10().floor() as i32);
            high = high.max(figure.log10().ceil() as i32);
        }
        if low > high { Self { low: 0, high: 1 } } else { Self { low, high: high.max(low + 1) } }
    }

    /// Returns the position of a figure on the axis, from 0 to 1.
    fn position(self, figure: f64) -> f64 {
        (figure.log10() - f64::from(self.low)) / f64::from(self.high - self.low)
    }

    fn powers(self) -> impl Iterator<Item = f64> {
        (self.low..=self.high).map(|power| 10_f64.powi(power))
    }
}

/// Renders the plot.
pub(crate) fn svg(curve: &Curve) -> String {
    let x = Axis::containing(curve.points.iter().map(|(x, _)| *x));
    let figures =
        curve.lines.iter().flat_map(|(_, name)| curve.points.iter().filter_map(|(_, s)| s.get(name)));
    let y = Axis::containing(figures);
    let [left, top, right, bottom] = MARGIN;
    let x_position = |figure: f64| left + x.position(figure) * (WIDTH - left - right);
    let y_position = |figure: f64| HEIGHT - bottom - y.position(figure) * (HEIGHT - top - bottom);

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">\n<title>{}</title>\n<style>{STYLE}</style>\n",
        curve.title
    );
    let text = |x: f64, y: f64, anchor: &str, class: &str, label_text: &str| {
        format!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" class=\"{class}\">{label_text}</text>\n"
        )
    };
    svg += &text(left, 24.0, "start", "title", curve.title);
    for power in x.powers() {
        let at = x_position(power);
        let _ = writeln!(svg, "<path class=\"grid\" d=\"M{at:.1} {top} V{:.1}\"/>", HEIGHT - bottom);
        svg += &text(at, HEIGHT - bottom + 18.0, "middle", "", &label(power));
    }
    for power in y.powers() {
        let at = y_position(power);
        let _ = writeln!(svg, "<path class=\"grid\" d=\"M{left} {at:.1} H{:.1}\"/>", WIDTH - right);
        svg += &text(left - 8.0, at + 4.0, "end", "", &label(power));
    }
    svg += &text((left + WIDTH - right) / 2.0, HEIGHT - 12.0, "middle", "", curve.x);
    svg += &text(left, top - 6.0, "end", "", curve.y);

    // Each label is at the end of its line. Labels that would overlap move up.
    let mut taken: Vec<f64> = Vec::new();
    for (number, (label_text, name)) in curve.lines.iter().enumerate() {
        let points: Vec<(f64, f64)> = curve
            .points
            .iter()
            .filter_map(|(x, sample)| {
                Some((x_position(*x), y_position(sample.get(name).filter(|figure| *figure > 0.0)?)))
            })
            .collect();
        let path: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
        let _ = writeln!(svg, "<path class=\"line c{number}\" d=\"M{}\"/>", path.join(" L"));
        for (x, y) in &points {
            let _ = writeln!(svg, "<circle class=\"c{number}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"/>");
        }
        let Some((end, mut at)) = points.last().copied() else { continue };
        while taken.iter().any(|other| (other - at).abs() < 15.0) {
            at -= 15.0;
        }
        taken.push(at);
        svg += &text(end + 8.0, at + 4.0, "start", &format!("c{number}"), label_text);
    }
    svg + "</svg>\n"
}

/// Formats a power of ten with the suffix `k` or `M`.
fn label(figure: f64) -> String {
    match figure {
        _ if figure >= 1e6 => format!("{}M", figure / 1e6),
        _ if figure >= 1e3 => format!("{}k", figure / 1e3),
        _ => figure.to_string(),
    }
}
