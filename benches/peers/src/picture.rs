//! The bars: what a job costs, with each subject's name above its bar, so that
//! the text stays legible on a phone.

use std::fmt::Write;

const WIDTH: f64 = 400.0;
const MARGIN: f64 = 12.0;
/// Room for the figure at the end of the longest bar.
const FIGURE: f64 = 56.0;
const ROW: f64 = 43.0;
const TOP: f64 = 74.0;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    Own,
    Other,
    Reference,
}

impl Tone {
    fn class(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Other => "other",
            Self::Reference => "reference",
        }
    }
}

#[derive(Debug)]
pub struct Bar {
    pub name: String,
    pub value: f64,
    pub tone: Tone,
}

/// Draws the bars as SVG, shortest first. It has no background, and its colours
/// follow the reader's scheme. A bar far longer than the others is broken, so
/// that it does not flatten them.
pub fn draw(title: &str, subtitle: &str, mut bars: Vec<Bar>) -> String {
    bars.sort_by(|one, other| one.value.total_cmp(&other.value));
    let longest = match bars.as_slice() {
        [.., next, last] if last.value > 1.5 * next.value => 1.15 * next.value,
        [.., last] => last.value,
        [] => 1.0,
    };
    let height = TOP + ROW * bars.len() as f64 + MARGIN;
    let mut svg = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" aria-label="{title}">
<style>
text {{ font: 15px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: #1f2328; }}
.title {{ font-size: 18px; font-weight: 600; }}
.faint {{ fill: #59636e; }}
.own {{ fill: #0969da; }}
.other {{ fill: #8c959f; }}
.reference {{ fill: #c8d1da; }}
text.strong {{ font-weight: 600; }}
@media (prefers-color-scheme: dark) {{
text {{ fill: #f0f6fc; }}
.faint {{ fill: #9198a1; }}
.own {{ fill: #4493f8; }}
.other {{ fill: #6e7681; }}
.reference {{ fill: #3d444d; }}
}}
</style>
<text class="title" x="{MARGIN}" y="26">{title}</text>
<text class="faint" x="{MARGIN}" y="48">{subtitle}</text>
"#
    );
    for (row, bar) in bars.iter().enumerate() {
        let y = TOP + ROW * row as f64;
        let full = WIDTH - 2.0 * MARGIN - FIGURE;
        let length = full * (bar.value / longest).min(1.0);
        let Bar { name, value, tone } = bar;
        let strong = match tone {
            Tone::Own => r#" class="strong""#,
            _ => "",
        };
        let class = tone.class();
        let _ = writeln!(
            svg,
            r#"<text{strong} x="{MARGIN}" y="{:.0}">{name}</text>"#,
            y + 13.0
        );
        let pieces: &[(f64, f64)] = if *value > longest {
            &[(0.0, length - 30.0), (length - 24.0, 24.0)]
        } else {
            &[(0.0, length)]
        };
        for (from, length) in pieces {
            let (x, y) = (MARGIN + from, y + 19.0);
            let _ = writeln!(
                svg,
                r#"<rect class="{class}" x="{x:.1}" y="{y:.0}" width="{length:.1}" height="14" rx="3"/>"#
            );
        }
        let _ = writeln!(
            svg,
            r#"<text{strong} x="{:.1}" y="{:.0}">{value:.0}</text>"#,
            MARGIN + length + 8.0,
            y + 31.0,
        );
    }
    svg += "</svg>\n";
    svg
}
