//! The picture: signal to noise against bits a weight, a vertical line a format, over all tensors.

use std::fmt::Write;

/// What is drawn of a format.
pub struct Line {
    pub name: &'static str,
    pub bits_per_weight: f64,
    /// Of all tensors together; `None` where nothing is lost.
    pub total_db: Option<f64>,
    /// Of each tensor in which anything is lost.
    pub tensors_db: Vec<f64>,
}

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 620.0;
/// Left, top, right and bottom of the area of the axes.
const AREA: [f64; 4] = [64.0, 52.0, 760.0, 540.0];

/// Follows the reader's choice of light or dark.
const STYLE: &str = "<style>\
    text{font:13px system-ui,sans-serif;fill:#333}\
    .title{font-size:16px}\
    .grid{stroke:#ddd}.axis{stroke:#888}.guide{stroke:#aaa;stroke-dasharray:4 4}\
    .spread{stroke:#2266cc;stroke-width:2}.tensor{fill:#2266cc;fill-opacity:.25}.total{fill:#2266cc}.leader{stroke:#aaa}\
    .paper{fill:#fff}\
    @media(prefers-color-scheme:dark){text{fill:#ddd}.paper{fill:#161616}.grid{stroke:#333}.axis{stroke:#999}\
    .guide,.leader{stroke:#666}.spread{stroke:#79aef5}.tensor,.total{fill:#79aef5}}\
    </style>";

/// An SVG of the lines, of any order; `subject` is what was measured.
pub fn svg(subject: &str, tensors: usize, lines: &[Line]) -> String {
    let [left, top, right, bottom] = AREA;
    let most_bits = lines.iter().map(|line| line.bits_per_weight).fold(4.0, f64::max).ceil() + 1.0;
    let all_db = lines.iter().flat_map(|line| line.tensors_db.iter().copied().chain(line.total_db));
    let most_db = (all_db.fold(20.0, f64::max) / 10.0).ceil() * 10.0 + 5.0;
    let x = |bits: f64| left + bits / most_bits * (right - left);
    let y = |db: f64| bottom - db.max(0.0) / most_db * (bottom - top);

    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">{STYLE}\
         <rect class=\"paper\" width=\"100%\" height=\"100%\"/>\
         <text class=\"title\" x=\"{left}\" y=\"28\">What formats lose of {tensors} tensors of {}</text>",
        escaped(subject)
    );
    let mut draw = |element: std::fmt::Arguments<'_>| out.write_fmt(element).expect("a string grows");
    for bits in (0..=most_bits as usize).step_by(2) {
        let x = x(bits as f64);
        draw(format_args!("<path class=\"grid\" d=\"M{x:.1} {top}V{bottom}\"/>"));
        draw(format_args!("<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{bits}</text>", bottom + 18.0));
    }
    for db in (0..most_db as usize).step_by(20) {
        let y = y(db as f64);
        draw(format_args!("<path class=\"grid\" d=\"M{left} {y:.1}H{right}\"/>"));
        draw(format_args!("<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{db}</text>", left - 8.0, y + 4.0));
    }
    draw(format_args!("<path class=\"axis\" fill=\"none\" d=\"M{left} {top}V{bottom}H{right}\"/>"));
    draw(format_args!("<text x=\"{right}\" y=\"{}\" text-anchor=\"end\">bits a weight</text>", bottom + 40.0));
    draw(format_args!(
        "<text x=\"{left}\" y=\"{}\">signal to noise, dB: dot of all weights, line from the worst tensor to the best; dashed: 6.02 dB a bit</text>",
        bottom + 64.0
    ));
    let end = most_bits.min(most_db / DB_PER_BIT);
    draw(format_args!(
        "<path class=\"guide\" d=\"M{:.1} {:.1}L{:.1} {:.1}\"/>",
        x(0.0),
        y(0.0),
        x(end),
        y(end * DB_PER_BIT)
    ));

    // Labels from the best down, each below those near it.
    let mut order: Vec<&Line> = lines.iter().collect();
    let height = |line: &Line| line.total_db.map_or(top, y);
    order.sort_by(|a, b| height(a).total_cmp(&height(b)));
    let mut labels: Vec<[f64; 2]> = Vec::new();
    for line in order {
        let (x, at) = (x(line.bits_per_weight), height(line));
        for &db in &line.tensors_db {
            draw(format_args!("<circle class=\"tensor\" cx=\"{x:.1}\" cy=\"{:.1}\" r=\"2.5\"/>", y(db)));
        }
        let worst = line.tensors_db.iter().copied().reduce(f64::min);
        let best = line.tensors_db.iter().copied().reduce(f64::max);
        if let (Some(worst), Some(best)) = (worst, best) {
            draw(format_args!("<path class=\"spread\" d=\"M{x:.1} {:.1}V{:.1}\"/>", y(worst), y(best)));
        }
        draw(format_args!("<circle class=\"total\" cx=\"{x:.1}\" cy=\"{at:.1}\" r=\"4.5\"/>"));
        let near = labels.iter().filter(|[other, _]| (x - other).abs() < LABEL_WIDTH).map(|[_, y]| y + LINE_HEIGHT);
        let label = near.fold(at + 4.0, f64::max);
        draw(format_args!("<path class=\"leader\" d=\"M{:.1} {at:.1}L{:.1} {:.1}\"/>", x + 6.0, x + 12.0, label - 4.0));
        let loss = match (line.total_db, worst, best) {
            (Some(db), Some(worst), Some(best)) => format!("{db:.1} dB ({worst:.1} to {best:.1})"),
            _ => "exact".to_owned(),
        };
        draw(format_args!("<text x=\"{:.1}\" y=\"{label:.1}\">{} {loss}</text>", x + 14.0, line.name));
        labels.push([x, label]);
    }
    out.push_str("</svg>\n");
    out
}

const DB_PER_BIT: f64 = 6.02;
const LABEL_WIDTH: f64 = 180.0;
const LINE_HEIGHT: f64 = 15.0;

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
