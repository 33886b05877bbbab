//! Bar charts as SVG that follow the reader's choice of light or dark.

use super::chart::{escaped, number};
use std::fmt::Write;

/// Bars from zero, in a row of them for each name: one for each series.
pub struct Bars<'a> {
    pub title: &'a str,
    pub unit: &'a str,
    /// What the bars of a row are, where there are several.
    pub series: &'a [&'a str],
    pub rows: Vec<(&'a str, Vec<f64>)>,
}

const WIDTH: f64 = 860.0;
/// Where bars begin and where the longest ends, with room for its number.
const SPAN: [f64; 2] = [84.0, 760.0];
const BAR: f64 = 16.0;
const GAP: f64 = 12.0;

impl Bars<'_> {
    pub fn svg(&self) -> String {
        let most = self.rows.iter().flat_map(|(_, values)| values).copied().fold(f64::MIN_POSITIVE, f64::max);
        let top = if self.series.is_empty() { 46.0 } else { 68.0 };
        let bars: usize = self.rows.iter().map(|(_, values)| values.len()).sum();
        let height = top + bars as f64 * BAR + self.rows.len() as f64 * GAP;
        let mut out = String::new();
        let mut draw = |element: std::fmt::Arguments<'_>| out.write_fmt(element).expect("a string grows");
        draw(format_args!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\"><style>\
             text{{font:13px system-ui,sans-serif;fill:#333}}.title{{font-size:15px}}.paper{{fill:#fff}}\
             .bar0{{fill:hsl(210 65% 42%)}}.bar1{{fill:hsl(210 35% 70%)}}\
             @media(prefers-color-scheme:dark){{text{{fill:#ddd}}.paper{{fill:#161616}}\
             .bar0{{fill:hsl(210 75% 66%)}}.bar1{{fill:hsl(210 30% 42%)}}}}</style>\
             <rect class=\"paper\" width=\"100%\" height=\"100%\"/>\
             <text class=\"title\" x=\"{}\" y=\"26\">{}, {}</text>",
            SPAN[0],
            escaped(self.title),
            escaped(self.unit)
        ));
        for (i, name) in self.series.iter().enumerate() {
            let x = SPAN[0] + 260.0 * i as f64;
            draw(format_args!("<rect class=\"bar{}\" x=\"{x}\" y=\"41\" width=\"12\" height=\"12\"/>", i % 2));
            draw(format_args!("<text x=\"{}\" y=\"52\">{}</text>", x + 18.0, escaped(name)));
        }
        let mut y = top;
        for (name, values) in &self.rows {
            let middle = y + values.len() as f64 * BAR / 2.0 + 4.0;
            draw(format_args!(
                "<text x=\"{}\" y=\"{middle}\" text-anchor=\"end\">{}</text>",
                SPAN[0] - 8.0,
                escaped(name)
            ));
            for (i, &value) in values.iter().enumerate() {
                let length = value / most * (SPAN[1] - SPAN[0]);
                draw(format_args!(
                    "<rect class=\"bar{}\" x=\"{}\" y=\"{y}\" width=\"{length:.1}\" height=\"{}\"/>\
                     <text x=\"{:.1}\" y=\"{}\">{}</text>",
                    i % 2,
                    SPAN[0],
                    BAR - 2.0,
                    SPAN[0] + length + 6.0,
                    y + 11.5,
                    number(value)
                ));
                y += BAR;
            }
            y += GAP;
        }
        out.push_str("</svg>\n");
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_bar_spans_the_area_and_others_their_share() {
        let rows = vec![("<f32>", vec![4.0, 5.0]), ("q8", vec![1.0, 2.5])];
        let svg = Bars { title: "a & b", unit: "GB", series: &["x", "y"], rows }.svg();
        for length in ["540.8", "676.0", "135.2", "338.0"] {
            assert!(svg.contains(&format!("width=\"{length}\"")), "{length}: {svg}");
        }
        assert!(svg.contains("&lt;f32&gt;") && svg.contains("a &amp; b") && !svg.contains("<f32>"));
    }
}
