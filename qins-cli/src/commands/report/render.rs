//! A report as HTML that needs nothing else, and as Markdown beside its charts.

use super::{
    chart::escaped,
    page::{Page, Part},
};

const STYLE: &str = "\
    :root{color-scheme:light dark}\
    body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;padding:0 1rem;max-width:64rem;color:#222;background:#fff}\
    h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.5rem}\
    .wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}\
    th,td{padding:.3rem .6rem;text-align:right;border-bottom:1px solid #ddd;white-space:nowrap}\
    th{white-space:normal;vertical-align:bottom;font-weight:600}th:first-child,td:first-child{text-align:left}\
    img{width:100%;height:auto;margin:1rem 0}details{margin:.5rem 0}pre{overflow-x:auto;font-size:13px}\
    code{font-family:ui-monospace,monospace}\
    @media(prefers-color-scheme:dark){body{color:#ddd;background:#161616}th,td{border-color:#3a3a3a}}";

/// One file.
pub fn html(page: &Page) -> String {
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width,initial-scale=1\"><title>QINS report</title><style>{STYLE}</style></head><body>\n"
    );
    for part in &page.0 {
        out += &match part {
            Part::Title(text) => format!("<h1>{}</h1>\n", escaped(text)),
            Part::Heading(text) => format!("<h2>{}</h2>\n", escaped(text)),
            Part::Text(text) => format!("<p>{}</p>\n", escaped(text)),
            Part::Table(table) => {
                let row = |cells: &[String], tag: &str| {
                    let cells: String = cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", inline(cell))).collect();
                    format!("<tr>{cells}</tr>\n")
                };
                let rows: String = table.rows.iter().map(|cells| row(cells, "td")).collect();
                format!(
                    "<div class=\"wide\"><table><thead>{}</thead><tbody>{rows}</tbody></table></div>\n",
                    row(&table.head, "th")
                )
            }
            // An image of its own, so that no chart's style reaches another.
            Part::Chart { svg, .. } => format!("<img alt=\"\" src=\"data:image/svg+xml,{}\">\n", percent_encoded(svg)),
            Part::Commands(commands) => {
                format!("<details><summary>Commands</summary><pre>{}</pre></details>\n", escaped(&commands.join("\n")))
            }
        };
    }
    out + "</body></html>\n"
}

/// Charts lie beside it.
pub fn markdown(page: &Page) -> String {
    let parts = page.0.iter().map(|part| match part {
        Part::Title(text) => format!("# {text}\n\n"),
        Part::Heading(text) => format!("## {text}\n\n"),
        Part::Text(text) => format!("{text}\n\n"),
        Part::Table(table) => table.markdown() + "\n",
        Part::Chart { name, .. } => format!("![]({name}.svg)\n\n"),
        Part::Commands(commands) => format!("```console\n{}\n```\n\n", commands.join("\n")),
    });
    let text: String = parts.collect();
    text.trim_end().to_owned() + "\n"
}

/// A cell's text, which may be code.
fn inline(cell: &str) -> String {
    match cell.strip_prefix('`').and_then(|cell| cell.strip_suffix('`')) {
        Some(code) => format!("<code>{}</code>", escaped(code)),
        None => escaped(cell),
    }
}

/// For the address of an image.
fn percent_encoded(svg: &str) -> String {
    svg.replace('%', "%25")
        .replace('#', "%23")
        .replace('"', "%22")
        .replace('<', "%3C")
        .replace('>', "%3E")
        .replace('\n', "")
}
