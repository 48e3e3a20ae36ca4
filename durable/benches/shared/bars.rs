//! A picture of rates.

use std::fmt::Write as _;

/// Bars of jobs a second. The first is what the others are compared with.
pub(crate) fn picture(title: &str, by_hand_label: &str, rows: &[(String, f64)]) -> String {
    const STYLE: &str = "text { font: 14px sans-serif; fill: #24292f; } .title { font-weight: \
        600; } rect { fill: #0969da; } .hand { fill: #8c959f; } .bg { fill: #ffffff; } @media \
        (prefers-color-scheme: dark) { text { fill: #e6edf3; } rect { fill: #4493f8; } .bg { \
        fill: #0d1117; } .hand { fill: #9198a1; } }";
    let height = 60 + 34 * rows.len();
    let most = rows.iter().map(|row| row.1).fold(1.0, f64::max);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"440\" height=\"{height}\" \
         viewBox=\"0 0 440 {height}\" role=\"img\"><title>{title}</title><style>{STYLE}</style><rect class=\"bg\" width=\"440\" \
         height=\"{height}\"/><text class=\"title\" x=\"16\" y=\"28\">{title}</text>",
    );
    let by_hand = rows[0].1;
    for (at, (name, rate)) in rows.iter().enumerate() {
        let y = 48 + 34 * at;
        let width = (130.0 * rate / most).max(1.0);
        let class = if at == 0 { " class=\"hand\"" } else { "" };
        let label = if at == 0 { by_hand_label } else { name };
        let _ = write!(
            svg,
            "<text x=\"16\" y=\"{}\">{label}</text><rect{class} x=\"196\" y=\"{y}\" \
             width=\"{width:.0}\" height=\"22\" rx=\"3\"/><text x=\"{:.0}\" y=\"{}\">{rate:.0} \
             ({:.0} ×)</text>",
            y + 16,
            204.0 + width,
            y + 16,
            rate / by_hand,
        );
    }
    svg + "</svg>\n"
}
