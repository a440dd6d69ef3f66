//! Writing HTML: every text from outside goes through [`escape`].

/// A text as it may stand in an element or in a quoted attribute.
pub(super) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            // Control characters have no place in a page.
            control if control.is_control() && control != '\n' && control != '\t' => {
                safe.push('\u{fffd}')
            }
            other => safe.push(other),
        }
    }
    safe
}

/// A share as a percentage.
pub(super) fn percent(share: f32) -> String {
    format!("{:.1} %", share * 100.0)
}

/// A whole number in groups of three digits.
pub(super) fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// A table; cells are HTML already. Columns in `numeric` are aligned to the right.
pub(super) fn table(head: &[&str], numeric: &[usize], rows: &[Vec<String>]) -> String {
    let class = |column: usize| if numeric.contains(&column) { " class=\"n\"" } else { "" };
    let mut html = String::from("<div class=\"panel\"><table><thead><tr>");
    for (column, name) in head.iter().enumerate() {
        html.push_str(&format!("<th{}>{}</th>", class(column), escape(name)));
    }
    html.push_str("</tr></thead><tbody>");
    for row in rows {
        html.push_str("<tr>");
        for (column, cell) in row.iter().enumerate() {
            html.push_str(&format!("<td{}>{cell}</td>", class(column)));
        }
        html.push_str("</tr>");
    }
    html.push_str("</tbody></table></div>");
    html
}

/// The legend above a plot: name and colour variable of each entry.
pub(super) fn legend(entries: &[(String, &str)]) -> String {
    let mut html = String::from("<div class=\"legend\">");
    for (name, colour) in entries {
        html.push_str(&format!(
            "<span><i style=\"--mark:var(--{colour})\"></i>{}</span>",
            escape(name)
        ));
    }
    html.push_str("</div>");
    html
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_outside_becomes_markup() {
        assert_eq!(escape("<script>\"&'\u{7}"), "&lt;script&gt;&quot;&amp;&#39;\u{fffd}");
    }

    #[test]
    fn numbers_are_grouped() {
        for (number, text) in
            [(0, "0"), (999, "999"), (1000, "1\u{202f}000"), (1_234_567, "1\u{202f}234\u{202f}567")]
        {
            assert_eq!(grouped(number), text);
        }
    }
}
