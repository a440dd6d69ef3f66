//! Sizes and numbers as expressions over names: `round(features / reduction)`. A closed grammar; nothing is executed.
//!
//! ```text
//! sum     = product { ("+" | "-") product }
//! product = factor { ("*" | "/") factor }
//! factor  = number | name | "-" factor | "(" sum ")" | ("min" | "max" | "round") "(" sum { "," sum } ")"
//! ```

use std::collections::BTreeSet;

/// Longest expression, in bytes.
const LEN_MAX: usize = 200;
/// Deepest nesting of parentheses, calls and signs.
const DEPTH_MAX: usize = 16;

/// A parsed expression.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Expression {
    Number(f64),
    Name(String),
    Negative(Box<Self>),
    Binary(Operator, Box<Self>, Box<Self>),
    Call(Function, Vec<Self>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Function {
    Min,
    Max,
    Round,
}

impl Expression {
    /// Reads an expression.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text.len() > LEN_MAX {
            return Err(format!(
                "an expression has at most {LEN_MAX} bytes, this has {}",
                text.len()
            ));
        }
        let mut reader = Reader { rest: text };
        let expression = reader.sum(0)?;
        match reader.peek() {
            None => Ok(expression),
            Some(_) => Err(format!("{:?} is left over in {text:?}", reader.rest.trim())),
        }
    }

    /// Its value, with the names looked up. Names are checked when a manifest is read; an unknown one is NaN.
    pub(crate) fn value(&self, named: &dyn Fn(&str) -> Option<f64>) -> f64 {
        match self {
            Self::Number(number) => *number,
            Self::Name(name) => named(name).unwrap_or(f64::NAN),
            Self::Negative(inner) => -inner.value(named),
            Self::Binary(operator, left, right) => {
                let (left, right) = (left.value(named), right.value(named));
                match operator {
                    Operator::Add => left + right,
                    Operator::Subtract => left - right,
                    Operator::Multiply => left * right,
                    Operator::Divide => left / right,
                }
            }
            Self::Call(function, arguments) => {
                let mut values = arguments.iter().map(|argument| argument.value(named));
                let first = values.next().unwrap_or(f64::NAN);
                match function {
                    Function::Min => {
                        values.fold(first, |a, b| if a.is_nan() || a < b { a } else { b })
                    }
                    Function::Max => {
                        values.fold(first, |a, b| if a.is_nan() || a > b { a } else { b })
                    }
                    Function::Round => first.round(),
                }
            }
        }
    }

    /// Adds every name that occurs.
    pub(crate) fn names(&self, found: &mut BTreeSet<String>) {
        match self {
            Self::Number(_) => {}
            Self::Name(name) => {
                found.insert(name.clone());
            }
            Self::Negative(inner) => inner.names(found),
            Self::Binary(_, left, right) => {
                left.names(found);
                right.names(found);
            }
            Self::Call(_, arguments) => arguments.iter().for_each(|one| one.names(found)),
        }
    }
}

struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    fn peek(&mut self) -> Option<char> {
        self.rest = self.rest.trim_start();
        self.rest.chars().next()
    }

    fn take(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(wanted);
        if found {
            self.rest = &self.rest[wanted.len_utf8()..];
        }
        found
    }

    fn expect(&mut self, wanted: char) -> Result<(), String> {
        if self.take(wanted) {
            return Ok(());
        }
        Err(format!("expected {wanted:?} before {:?}", self.rest.trim()))
    }

    fn sum(&mut self, depth: usize) -> Result<Expression, String> {
        let mut left = self.product(depth)?;
        loop {
            let operator = match self.peek() {
                Some('+') => Operator::Add,
                Some('-') => Operator::Subtract,
                _ => return Ok(left),
            };
            self.rest = &self.rest[1..];
            let right = self.product(depth)?;
            left = Expression::Binary(operator, Box::new(left), Box::new(right));
        }
    }

    fn product(&mut self, depth: usize) -> Result<Expression, String> {
        let mut left = self.factor(depth)?;
        loop {
            let operator = match self.peek() {
                Some('*') => Operator::Multiply,
                Some('/') => Operator::Divide,
                _ => return Ok(left),
            };
            self.rest = &self.rest[1..];
            let right = self.factor(depth)?;
            left = Expression::Binary(operator, Box::new(left), Box::new(right));
        }
    }

    fn factor(&mut self, depth: usize) -> Result<Expression, String> {
        if depth > DEPTH_MAX {
            return Err(format!("an expression is nested at most {DEPTH_MAX} deep"));
        }
        match self.peek() {
            Some('-') => {
                self.rest = &self.rest[1..];
                Ok(Expression::Negative(Box::new(self.factor(depth + 1)?)))
            }
            Some('(') => {
                self.rest = &self.rest[1..];
                let inner = self.sum(depth + 1)?;
                self.expect(')')?;
                Ok(inner)
            }
            Some(first) if first.is_ascii_digit() => self.number(),
            Some(first) if first.is_ascii_lowercase() => self.name(depth),
            Some(_) => Err(format!("{:?} begins neither a number nor a name", self.rest.trim())),
            None => Err("the expression ends where a number or a name is expected".to_owned()),
        }
    }

    fn word(&mut self, belongs: impl Fn(u8) -> bool) -> String {
        let end = self.rest.bytes().position(|byte| !belongs(byte)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word.to_owned()
    }

    fn number(&mut self) -> Result<Expression, String> {
        let word = self.word(|byte| byte.is_ascii_digit() || byte == b'.');
        let number = word.parse::<f64>().ok().filter(|number| number.is_finite());
        number.map(Expression::Number).ok_or_else(|| format!("{word:?} is no number"))
    }

    fn name(&mut self, depth: usize) -> Result<Expression, String> {
        let is_name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        let word = self.word(is_name);
        if self.peek() != Some('(') {
            return Ok(Expression::Name(word));
        }
        let function = match word.as_str() {
            "min" => Function::Min,
            "max" => Function::Max,
            "round" => Function::Round,
            _ => return Err(format!("there is no function {word}; there are min, max and round")),
        };
        self.expect('(')?;
        let mut arguments = vec![self.sum(depth + 1)?];
        while self.take(',') {
            arguments.push(self.sum(depth + 1)?);
        }
        self.expect(')')?;
        if function == Function::Round && arguments.len() != 1 {
            return Err(format!("round takes 1 value, found {}", arguments.len()));
        }
        Ok(Expression::Call(function, arguments))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Result<f64, String> {
        let named = |name: &str| match name {
            "features" => Some(32.0),
            "reduction" => Some(5.0),
            _ => None,
        };
        Ok(Expression::parse(text)?.value(&named))
    }

    #[test]
    fn arithmetic_has_its_usual_order() {
        let expected = [
            ("1 + 2 * 3 - 4 / 2", 5.0),
            ("(1 + 2) * -3", -9.0),
            ("round(features / reduction)", 6.0),
            ("max(4, min(features, 2 * reduction, 99))", 10.0),
            (" 0.25*features ", 8.0),
            ("8 - 4 - 2", 2.0),
        ];
        for (text, number) in expected {
            assert_eq!(value(text), Ok(number), "{text}");
        }
    }

    #[test]
    fn what_is_no_expression_is_refused() {
        let deep = format!("{}1{}", "(".repeat(40), ")".repeat(40));
        let long = "1+".repeat(150);
        for text in [
            "",
            "1 +",
            "2 3",
            "sqrt(4)",
            "features[0]",
            "round(1, 2)",
            "1.2.3",
            "(1",
            "a;b",
            "A",
            "1e9",
            "min()",
            &deep,
            &long,
        ] {
            assert!(Expression::parse(text).is_err(), "{text}");
        }
    }
}
