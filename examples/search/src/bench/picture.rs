//! Throughput and latency by the number of callers, drawn to be read on a phone.

use std::fmt::Write;

use super::Line;
use super::load::Summary;

const WIDTH: f64 = 400.0;
const HEIGHT: f64 = 520.0;
const LEFT: f64 = 24.0;
const RIGHT: f64 = 66.0;
const PANEL: f64 = 150.0;
/// Where the panels end, and the second's callers stand below it.
const BOTTOMS: [f64; 2] = [244.0, 474.0];

/// Grey that can be read on white and on black, for viewers that do not say which it is;
/// then the two.
const STYLE: &str = "\
text{font:14px system-ui,sans-serif;fill:#767676}\
.title{font-size:17px;font-weight:600}\
.axis{stroke:#808080;stroke-opacity:.5;stroke-width:1}\
.line{fill:none;stroke-width:2.5;stroke-linejoin:round;stroke-linecap:round}\
.s0{stroke:#b06f00}.t0{fill:#b06f00}\
.s1{stroke:#0d7fc4}.t1{fill:#0d7fc4;font-weight:600}\
@media (prefers-color-scheme:light){text,.title{fill:#24292f}\
.t0{fill:#8a5600}.s0{stroke:#8a5600}.t1{fill:#0969a8}.s1{stroke:#0969a8}}\
@media (prefers-color-scheme:dark){text,.title{fill:#e6edf3}\
.t0{fill:#e3a63c}.s0{stroke:#e3a63c}.t1{fill:#58b4f0}.s1{stroke:#58b4f0}}";

/// Returns an SVG of both figures.
pub fn draw(lines: &[Line]) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">\
         <title>Throughput and median latency by callers, one query at a time and in batches\
         </title><style>{STYLE}</style>\n"
    );
    text(
        &mut svg,
        (LEFT, 24.0),
        "title",
        "start",
        "Search, by the number of callers",
    );
    text(&mut svg, (LEFT, 46.0), "t1", "start", "batched");
    text(
        &mut svg,
        (LEFT + 70.0, 46.0),
        "t0",
        "start",
        "one at a time, same threads",
    );
    panel(&mut svg, BOTTOMS[0], "queries a second", lines, |way| {
        way.rate()
    });
    let latency = |way: &Summary| way.percentile(0.5);
    panel(&mut svg, BOTTOMS[1], "median latency, ms", lines, latency);
    svg.push_str("</svg>\n");
    svg
}

/// Draws one figure of both ways, from zero.
fn panel(svg: &mut String, bottom: f64, name: &str, lines: &[Line], of: impl Fn(&Summary) -> f64) {
    let figures = lines
        .iter()
        .flat_map(|line| [of(&line.alone), of(&line.batched)]);
    let most = figures.fold(f64::MIN_POSITIVE, f64::max);
    let steps = lines.len().saturating_sub(1).max(1) as f64;
    let x = |place: usize| LEFT + 8.0 + (WIDTH - LEFT - RIGHT - 8.0) * place as f64 / steps;
    let y = |figure: f64| bottom - PANEL * figure / most;
    text(svg, (LEFT, bottom - PANEL - 14.0), "", "start", name);
    let right = WIDTH - RIGHT;
    let _ = writeln!(svg, "<path class=\"axis\" d=\"M{LEFT} {bottom}H{right}\"/>");
    for (place, line) in lines.iter().enumerate() {
        text(
            svg,
            (x(place), bottom + 20.0),
            "",
            "middle",
            &line.callers.to_string(),
        );
    }
    text(
        svg,
        (WIDTH - RIGHT + 14.0, bottom + 20.0),
        "",
        "start",
        "callers",
    );
    for (class, way) in [0, 1]
        .into_iter()
        .zip([(|line| &line.alone) as fn(&Line) -> &Summary, |line| {
            &line.batched
        }])
    {
        let points = lines.iter().enumerate();
        let points = points.map(|(place, line)| format!("{:.1},{:.1}", x(place), y(of(way(line)))));
        let points = points.collect::<Vec<_>>().join(" ");
        let _ = writeln!(
            svg,
            "<polyline class=\"line s{class}\" points=\"{points}\"/>"
        );
        if let Some(last) = lines.last() {
            let figure = of(way(last));
            let digits = usize::from(figure < 10.0);
            let label = format!("{figure:.digits$}");
            text(
                svg,
                (right + 8.0, y(figure) + 5.0),
                &format!("t{class}"),
                "start",
                &label,
            );
        }
    }
}

fn text(svg: &mut String, (x, y): (f64, f64), class: &str, anchor: &str, text: &str) {
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\" text-anchor=\"{anchor}\">{text}</text>"
    );
}
