//! The percentile curve of histograms: how long, over what part of all stayed within it. Both axes are
//! logarithmic, so that each nine of the percentile takes the same room. For a terminal, and as SVG.

use std::fmt::Write;

use hdrhistogram::Histogram;

/// A curve.
#[derive(Clone, Debug)]
pub struct Curve {
    /// What it shows.
    pub name: String,
    /// From left to right: how many nines the percentile has (0 at 0 %, 1 at 90 %, 2 at 99 %), and
    /// nanoseconds, 1 at least.
    points: Vec<(f64, f64)>,
}

/// Nines that are shown at most.
const NINES_MAX: f64 = 6.0;
/// Points of a curve for each nine.
const POINTS_PER_NINE: u32 = 24;
/// Marks of curves in a terminal; with more curves they come again.
const MARKS: [char; 10] = ['*', '+', 'o', 'x', '#', '@', '%', '=', '~', '&'];
/// Columns and lines of the terminal's plot, without its axes.
const COLUMNS: usize = 72;
const LINES: usize = 18;
/// Columns before the plot, for values.
const MARGIN: usize = 9;
/// Colours of curves; with more curves they come again. From the palette of Okabe and Ito, which those who
/// see few colours tell apart.
const COLOURS: [&str; 7] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000",
];

impl Curve {
    /// The curve of a histogram of nanoseconds; `None` of an empty one.
    #[must_use]
    pub fn of(name: &str, histogram: &Histogram<u64>) -> Option<Self> {
        if histogram.is_empty() {
            return None;
        }
        // What one value in all stands for is the last nine that says something.
        let nines = (histogram.len() as f64).log10().clamp(1.0, NINES_MAX);
        let steps = (nines * f64::from(POINTS_PER_NINE)).ceil() as u32;
        let point = |step: u32| {
            let nines = (f64::from(step) / f64::from(POINTS_PER_NINE)).min(nines);
            let value = histogram.value_at_quantile(1.0 - 10_f64.powf(-nines));
            (nines, (value as f64).max(1.0))
        };
        Some(Self {
            name: name.to_owned(),
            points: (0..=steps).map(point).collect(),
        })
    }

    /// Its value at so many nines: that of the last point before.
    fn at(&self, nines: f64) -> Option<f64> {
        let (last, _) = self.points.last()?;
        if nines > *last + 1e-9 {
            return None;
        }
        let before = self.points.iter().take_while(|(at, _)| *at <= nines + 1e-9);
        before.last().map(|(_, value)| *value)
    }
}

/// What the axes span.
struct Span {
    nines: f64,
    /// Powers of ten of nanoseconds, whole decades.
    low: f64,
    high: f64,
}

impl Span {
    fn of(curves: &[Curve]) -> Self {
        let points = || curves.iter().flat_map(|curve| &curve.points);
        let nines = points().map(|(nines, _)| *nines).fold(1.0, f64::max);
        let low = points().map(|(_, value)| *value).fold(f64::MAX, f64::min);
        let high = points().map(|(_, value)| *value).fold(1.0, f64::max);
        let low = low.min(high).log10().floor();
        Self {
            nines: nines.ceil(),
            low,
            high: high.log10().ceil().max(low + 1.0),
        }
    }

    /// Where a value is between bottom, 0, and top, 1.
    fn height(&self, value: f64) -> f64 {
        ((value.log10() - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }

    fn decades(&self) -> impl Iterator<Item = f64> {
        let (mut at, high) = (self.low, self.high);
        std::iter::from_fn(move || {
            let decade = (at <= high).then_some(at)?;
            at += 1.0;
            Some(decade)
        })
    }
}

/// The percentile with so many nines.
fn percentile(nines: u32) -> String {
    match nines {
        0 => "0%".to_owned(),
        1 => "90%".to_owned(),
        2 => "99%".to_owned(),
        more => format!("99.{}%", "9".repeat(more as usize - 2)),
    }
}

/// Nanoseconds for people, with three digits and a unit.
#[must_use]
pub fn readable(ns: u64) -> String {
    let (value, unit) = match ns {
        0..1_000 => return format!("{ns} ns"),
        1_000..1_000_000 => (ns as f64 / 1e3, "µs"),
        1_000_000..1_000_000_000 => (ns as f64 / 1e6, "ms"),
        _ => (ns as f64 / 1e9, "s"),
    };
    match value {
        ..9.995 => format!("{value:.2} {unit}"),
        9.995..99.95 => format!("{value:.1} {unit}"),
        _ => format!("{value:.0} {unit}"),
    }
}

/// The curves for a terminal; empty without one.
#[must_use]
pub fn terminal(curves: &[Curve]) -> String {
    if curves.is_empty() {
        return String::new();
    }
    let span = Span::of(curves);
    let mut grid = vec![[' '; COLUMNS]; LINES];
    for (curve, mark) in curves.iter().zip(MARKS.iter().cycle()) {
        let at = |column: usize| curve.at(span.nines * column as f64 / (COLUMNS - 1) as f64);
        for (column, value) in (0..COLUMNS).map_while(|column| Some((column, at(column)?))) {
            let up = (span.height(value) * (LINES - 1) as f64).round() as usize;
            grid[LINES - 1 - up][column] = *mark;
        }
    }
    let mut labels = vec![String::new(); LINES];
    for decade in span.decades() {
        let up = (span.height(10_f64.powf(decade)) * (LINES - 1) as f64).round() as usize;
        labels[LINES - 1 - up] = readable(10_f64.powf(decade) as u64);
    }
    let mut text = String::new();
    for (label, line) in labels.iter().zip(&grid) {
        let axis = if label.is_empty() { '│' } else { '┤' };
        let line: String = line.iter().collect();
        let _ = writeln!(text, "{label:>MARGIN$} {axis}{}", line.trim_end());
    }
    let _ = writeln!(text, "{:MARGIN$} └{}", "", "─".repeat(COLUMNS));
    let mut below = vec![' '; MARGIN + 2 + COLUMNS + 8];
    for nines in 0..=span.nines as u32 {
        let at = f64::from(nines) / span.nines * (COLUMNS - 1) as f64;
        for (place, letter) in percentile(nines).chars().enumerate() {
            below[MARGIN + 2 + at as usize + place] = letter;
        }
    }
    let below: String = below.into_iter().collect();
    let _ = writeln!(text, "{}", below.trim_end());
    for (curve, mark) in curves.iter().zip(MARKS.iter().cycle()) {
        let _ = writeln!(text, "{:MARGIN$}  {mark} {}", "", curve.name);
    }
    text
}

/// Size of the picture and of its margins, in points.
const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 540.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 230.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 60.0;

/// The curves as a picture.
#[must_use]
pub fn svg(title: &str, curves: &[Curve]) -> String {
    let span = Span::of(curves);
    let (wide, high) = (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM);
    let x = |nines: f64| LEFT + nines / span.nines * wide;
    let y = |value: f64| TOP + (1.0 - span.height(value)) * high;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         width=\"{WIDTH}\" height=\"{HEIGHT}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"{LEFT}\" y=\"28\" font-size=\"17\">{}</text>\n",
        escaped(title)
    );
    for decade in span.decades() {
        let value = 10_f64.powf(decade);
        let (at, right, label) = (y(value), LEFT + wide, readable(value as u64));
        let _ = writeln!(
            text,
            "<line x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            LEFT - 8.0,
            at + 4.0
        );
    }
    for nines in 0..=span.nines as u32 {
        let (at, bottom) = (x(f64::from(nines)), TOP + high);
        let _ = writeln!(
            text,
            "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{bottom}\" stroke=\"#ddd\"/>\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            bottom + 20.0,
            percentile(nines)
        );
    }
    for (number, (curve, colour)) in curves.iter().zip(COLOURS.iter().cycle()).enumerate() {
        let points = curve.points.iter();
        let points = points.map(|(nines, value)| format!("{:.1},{:.1}", x(*nines), y(*value)));
        let points: Vec<String> = points.collect();
        let (key, line) = (WIDTH - RIGHT + 16.0, TOP + 12.0 + 20.0 * number as f64);
        let _ = writeln!(
            text,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n\
             <rect x=\"{key}\" y=\"{:.1}\" width=\"14\" height=\"4\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"{line:.1}\">{}</text>",
            points.join(" "),
            line - 6.0,
            key + 20.0,
            escaped(&curve.name)
        );
    }
    text + "</svg>\n"
}

fn escaped(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    text.replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(name: &str, values: &[u64]) -> Curve {
        let mut histogram = Histogram::new(3).unwrap();
        for value in values {
            histogram.record(*value).unwrap();
        }
        Curve::of(name, &histogram).unwrap()
    }

    #[test]
    fn times_are_written_with_three_digits_and_a_unit() {
        for (ns, text) in [
            (0, "0 ns"),
            (999, "999 ns"),
            (1_000, "1.00 µs"),
            (9_996, "10.0 µs"),
            (123_456, "123 µs"),
            (1_234_567, "1.23 ms"),
            (99_960_000, "100 ms"),
            (61_000_000_000, "61.0 s"),
        ] {
            assert_eq!(readable(ns), text);
        }
    }

    #[test]
    fn a_curve_never_falls_and_ends_where_the_values_end() {
        let values: Vec<u64> = (1..=1_000).map(|n| n * 1_000).collect();
        let curve = curve("sync", &values);
        assert!(curve.points.is_sorted_by(|a, b| a.0 <= b.0 && a.1 <= b.1));
        let (nines, value) = *curve.points.last().unwrap();
        assert!(
            (nines - 3.0).abs() < 1e-9,
            "a thousand values have three nines"
        );
        assert!((998_000.0..1_001_000.0).contains(&value), "{value}");
        assert!(Curve::of("none", &Histogram::new(3).unwrap()).is_none());
    }

    #[test]
    fn a_terminal_shows_every_curve_with_its_axes() {
        let fast: Vec<u64> = (1..=100).map(|n| n * 1_000).collect();
        let text = terminal(&[curve("fast", &fast), curve("slow", &[50_000_000])]);
        for wanted in ["* fast", "+ slow", "90%", "99%", "1.00 µs", "100 ms", "└"] {
            assert!(text.contains(wanted), "no {wanted} in\n{text}");
        }
        assert_eq!(text.lines().count(), LINES + 2 + 2);
        let lines: Vec<&str> = text.lines().collect();
        let first = |mark| lines.iter().position(|line| line.contains(mark)).unwrap();
        assert!(first('+') < first('*'), "the slow one is above\n{text}");
        assert_eq!(terminal(&[]), "");
    }

    #[test]
    fn a_picture_has_a_line_for_each_curve_and_names_are_no_markup() {
        let text = svg("a < b", &[curve("x & \"y\"", &[1, 2]), curve("z", &[9])]);
        assert_eq!(text.matches("<polyline").count(), 2);
        assert!(text.contains("a &lt; b") && text.contains("x &amp; &quot;y&quot;"));
        assert!(text.starts_with("<svg ") && text.ends_with("</svg>\n"));
        assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
    }
}
