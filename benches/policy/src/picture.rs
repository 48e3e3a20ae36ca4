//! Latency against load, drawn to be read on a phone.

use std::fmt::Write;

use crate::latency::{CONTENDERS, IDEAL, IDLE, Row, curve};

const WIDTH: f64 = 400.0;
const HEIGHT: f64 = 430.0;
const LEFT: f64 = 42.0;
const RIGHT: f64 = 22.0;
const TOP: f64 = 66.0;
const BOTTOM: f64 = 52.0;
const LEAST: f64 = 1.0;
const MOST: f64 = 130.0;

/// Grey that can be read on white and on black, for viewers that do not say
/// which it is; then the two.
const STYLE: &str = "\
text{font:14px system-ui,sans-serif;fill:#767676}\
.title{font-size:17px;font-weight:600}\
.grid{stroke:#808080;stroke-opacity:.35;stroke-width:1}\
.line{fill:none;stroke-width:2.5;stroke-linejoin:round;stroke-linecap:round}\
.dot{fill:none;stroke:#767676;stroke-width:1.5}\
.s0{stroke:#0d7fc4}.t0{fill:#0d7fc4;font-weight:600}\
.s1{stroke:#b06f00}.t1{fill:#b06f00}\
.s2{stroke:#b06f00;stroke-dasharray:7 5}\
.s3{stroke:#8a6fd0}.t3{fill:#8a6fd0}\
.s4{stroke:#d0503c}.t4{fill:#d0503c}\
@media (prefers-color-scheme:light){\
text,.title{fill:#24292f}.dot{stroke:#24292f}\
.t0{fill:#0969a8}.s0{stroke:#0969a8}.t1{fill:#8a5600}.s1,.s2{stroke:#8a5600}\
.t3{fill:#6a4fb3}.s3{stroke:#6a4fb3}.t4{fill:#b3361f}.s4{stroke:#b3361f}}\
@media (prefers-color-scheme:dark){\
text,.title{fill:#e6edf3}.dot{stroke:#e6edf3}\
.t0{fill:#58b4f0}.s0{stroke:#58b4f0}.t1{fill:#e3a63c}.s1,.s2{stroke:#e3a63c}\
.t3{fill:#b8a3f0}.s3{stroke:#b8a3f0}.t4{fill:#ff8672}.s4{stroke:#ff8672}}";

/// A line: which contender, its label, and where the label goes: its load, its
/// latency, and which end of it is there.
struct Line {
    contender: usize,
    class: usize,
    label: &'static str,
    at: (f64, f64),
    anchor: &'static str,
}

const LINES: [Line; 5] = [
    Line {
        contender: 7,
        class: 4,
        label: "wait restarted by each job",
        at: (12.5, 109.0),
        anchor: "start",
    },
    Line {
        contender: 5,
        class: 3,
        label: "10 in flight",
        at: (45.0, 14.6),
        anchor: "start",
    },
    Line {
        contender: 4,
        class: 2,
        label: "wait 10 τ₀",
        at: (24.0, 6.5),
        anchor: "start",
    },
    Line {
        contender: 3,
        class: 1,
        label: "wait 5 τ₀",
        at: (24.0, 3.65),
        anchor: "start",
    },
    Line {
        contender: IDLE,
        class: 0,
        label: "idle flush (○ ideal)",
        at: (42.0, 1.9),
        anchor: "start",
    },
];

fn x(load: f64) -> f64 {
    LEFT + load / 90.0 * (WIDTH - LEFT - RIGHT)
}

fn y(latency: f64) -> f64 {
    let share = (latency / LEAST).ln() / (MOST / LEAST).ln();
    HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
}

/// Returns the picture as SVG.
pub fn draw(rows: &[Row]) -> String {
    let mut svg = String::new();
    write_all(&mut svg, rows).expect("a string takes everything");
    svg
}

fn write_all(svg: &mut String, rows: &[Row]) -> std::fmt::Result {
    writeln!(
        svg,
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="title description">"#
    )?;
    writeln!(
        svg,
        r#"<title id="title">Mean latency against load, by waiting policy</title>"#
    )?;
    writeln!(svg, r#"<desc id="description">{}</desc>"#, describe(rows))?;
    writeln!(svg, "<style>{STYLE}</style>")?;
    writeln!(
        svg,
        r#"<text class="title" x="8" y="22">Mean latency by waiting policy</text>"#
    )?;
    writeln!(
        svg,
        r#"<text x="8" y="44">in τ₀, the setup of one batch; log scale</text>"#
    )?;
    for tick in [1.0, 3.0, 10.0, 30.0, 100.0] {
        let (y, end) = (y(tick), WIDTH - RIGHT);
        writeln!(svg, r#"<path class="grid" d="M{LEFT} {y:.1}H{end}"/>"#)?;
        let (x, y) = (LEFT - 6.0, y + 5.0);
        writeln!(
            svg,
            r#"<text x="{x}" y="{y:.1}" text-anchor="end">{tick}</text>"#
        )?;
    }
    for tick in [5.0, 20.0, 40.0, 60.0, 90.0] {
        let (x, y) = (x(tick), HEIGHT - BOTTOM + 20.0);
        writeln!(
            svg,
            r#"<text x="{x:.1}" y="{y}" text-anchor="middle">{tick} %</text>"#
        )?;
    }
    let (middle, foot) = ((LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 10.0);
    writeln!(
        svg,
        r#"<text x="{middle}" y="{foot}" text-anchor="middle">load (Poisson arrivals)</text>"#
    )?;
    for line in &LINES {
        let points = curve(rows, line.contender);
        let points = points
            .iter()
            .map(|(load, mean)| format!("{:.1},{:.1}", x(*load), y(*mean)));
        let points: Vec<_> = points.collect();
        let class = line.class;
        writeln!(
            svg,
            r#"<polyline class="line s{class}" points="{}"/>"#,
            points.join(" ")
        )?;
    }
    for (load, mean) in curve(rows, IDEAL) {
        writeln!(
            svg,
            r#"<circle class="dot" cx="{:.1}" cy="{:.1}" r="5"/>"#,
            x(load),
            y(mean)
        )?;
    }
    for line in &LINES {
        let (load, latency) = line.at;
        // Both waits share a colour.
        let class = if line.class == 2 { 1 } else { line.class };
        writeln!(
            svg,
            r#"<text class="t{class}" x="{:.1}" y="{:.1}" text-anchor="{}">{}</text>"#,
            x(load),
            y(latency),
            line.anchor,
            line.label
        )?;
    }
    writeln!(svg, "</svg>")
}

/// The picture in words.
fn describe(rows: &[Row]) -> String {
    let lines = LINES.iter().map(|line| {
        let points = curve(rows, line.contender);
        let (first, last) = (points[0], points[points.len() - 1]);
        format!(
            "{}: {:.1} at {} %, {:.1} at {} % load.",
            CONTENDERS[line.contender].name(),
            first.1,
            first.0,
            last.1,
            last.0
        )
    });
    lines.collect::<Vec<_>>().join(" ")
}
