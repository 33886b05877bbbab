//! Line charts as SVG that follow the reader's choice of light or dark.

use std::fmt::Write;

/// Lines over one axis. Values of `y` are shares or numbers from `y_range`.
pub struct Chart<'a> {
    pub title: &'a str,
    pub x_label: &'a str,
    pub y_label: &'a str,
    pub y_range: [f64; 2],
    pub lines: Vec<Line<'a>>,
}

/// A line, or a dot where it has one point.
pub struct Line<'a> {
    pub name: &'a str,
    pub points: Vec<[f64; 2]>,
}

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 420.0;
/// Left, top, right and bottom of the area of the axes.
const AREA: [f64; 4] = [64.0, 46.0, 700.0, 362.0];

/// Lines whose hues are told apart.
const HUES: usize = 7;

/// Hues that differ by a golden angle, so that neighbours in a list are easily told apart.
fn hue(i: usize) -> usize {
    (210 + i * 137) % 360
}

impl Chart<'_> {
    pub fn svg(&self) -> String {
        let [left, top, right, bottom] = AREA;
        let all_x = || self.lines.iter().flat_map(|line| line.points.iter().map(|[x, _]| *x));
        let (x_min, x_max) = (all_x().fold(f64::INFINITY, f64::min), all_x().fold(f64::NEG_INFINITY, f64::max));
        let [y_min, y_max] = self.y_range;
        let x = |value: f64| left + (value - x_min) / (x_max - x_min).max(f64::MIN_POSITIVE) * (right - left);
        let y = |value: f64| bottom - (value.clamp(y_min, y_max) - y_min) / (y_max - y_min) * (bottom - top);
        let mut out = String::new();
        let mut draw = |element: std::fmt::Arguments<'_>| out.write_fmt(element).expect("a string grows");
        draw(format_args!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\"><style>\
             text{{font:13px system-ui,sans-serif;fill:#333}}.title{{font-size:15px}}.grid{{stroke:#ddd}}.axis{{stroke:#888}}\
             .line{{fill:none;stroke-width:2;stroke:hsl(var(--hue) 65% 42%)}}.mark{{fill:hsl(var(--hue) 65% 42%)}}.paper{{fill:#fff}}\
             @media(prefers-color-scheme:dark){{text{{fill:#ddd}}.paper{{fill:#161616}}.grid{{stroke:#333}}.axis{{stroke:#999}}\
             .line{{stroke:hsl(var(--hue) 75% 66%)}}.mark{{fill:hsl(var(--hue) 75% 66%)}}}}</style>\
             <rect class=\"paper\" width=\"100%\" height=\"100%\"/><text class=\"title\" x=\"{left}\" y=\"26\">{}</text>",
            escaped(self.title)
        ));
        for value in ticks(y_min, y_max) {
            let y = y(value);
            draw(format_args!("<path class=\"grid\" d=\"M{left} {y:.1}H{right}\"/>"));
            let (x, y, value) = (left - 8.0, y + 4.0, number(value));
            draw(format_args!("<text x=\"{x}\" y=\"{y:.1}\" text-anchor=\"end\">{value}</text>"));
        }
        for value in ticks(x_min, x_max) {
            let (x, y, value) = (x(value), bottom + 18.0, number(value));
            draw(format_args!("<text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\">{value}</text>"));
        }
        draw(format_args!("<path class=\"axis\" fill=\"none\" d=\"M{left} {top}V{bottom}H{right}\"/>"));
        draw(format_args!(
            "<text x=\"{left}\" y=\"{0}\">{1}; across: {2}</text>",
            bottom + 42.0,
            escaped(self.y_label),
            escaped(self.x_label)
        ));
        for (i, line) in self.lines.iter().enumerate() {
            let points: Vec<String> = line.points.iter().map(|&[a, b]| format!("{:.1} {:.1}", x(a), y(b))).collect();
            let (hue, legend) = (hue(i), top + 14.0 + 20.0 * i as f64);
            // Dashed where hues come near those of earlier lines.
            let dashes = if i < HUES { "" } else { " stroke-dasharray=\"6 3\"" };
            draw(format_args!("<g style=\"--hue:{hue}\"{dashes}>"));
            if let [[a, b]] = line.points[..] {
                draw(format_args!("<circle class=\"mark\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"5\"/>", x(a), y(b)));
            } else if !points.is_empty() {
                draw(format_args!("<path class=\"line\" d=\"M{}\"/>", points.join("L")));
            }
            draw(format_args!(
                "<circle class=\"mark\" cx=\"{}\" cy=\"{}\" r=\"5\"/><text x=\"{}\" y=\"{legend}\">{}</text></g>",
                right + 22.0,
                legend - 4.0,
                right + 34.0,
                escaped(line.name)
            ));
        }
        out.push_str("</svg>\n");
        out
    }
}

/// Multiples of 1, 2 or 5 of a power of ten between two numbers, some five of them.
fn ticks(min: f64, max: f64) -> Vec<f64> {
    let most = (max - min).max(f64::MIN_POSITIVE) / 4.0;
    let power = 10f64.powf(most.log10().floor());
    let step = power * [5.0, 2.0].into_iter().find(|factor| factor * power <= most).unwrap_or(1.0);
    let (first, last) = ((min / step).ceil() as i64, (max / step + 1e-9).floor() as i64);
    (first..=last).map(|i| i as f64 * step).collect()
}

/// Three decimals at most.
pub fn number(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// For text of SVG and HTML.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_cover_the_axis() {
        assert_eq!(ticks(0.0, 100.0), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        assert_eq!(ticks(-9.9, 1.9), [-8.0, -6.0, -4.0, -2.0, 0.0]);
        assert_eq!(ticks(2.5, 16.2), [4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0]);
        assert_eq!(ticks(3.0, 3.0).len(), 1);
    }

    #[test]
    fn what_a_name_holds_is_no_markup() {
        let lines = vec![Line { name: "<q8>", points: vec![[0.0, 0.0], [1.0, 2.0]] }];
        let svg = Chart { title: "a & b", x_label: "x", y_label: "y", y_range: [0.0, 1.0], lines }.svg();
        assert!(svg.contains("a &amp; b") && svg.contains("&lt;q8&gt;") && !svg.contains("<q8>"));
    }
}
