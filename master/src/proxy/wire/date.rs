//! The time as answers tell it, made once a second.

use std::cell::RefCell;

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;

thread_local! {
    static NOW: RefCell<(i64, String)> = const { RefCell::new((i64::MIN, String::new())) };
}

/// Calls `tell` with the current date as RFC 9110, section 5.6.7, writes it.
pub fn with<T>(tell: impl FnOnce(&str) -> T) -> T {
    let now = Timestamp::now();
    NOW.with_borrow_mut(|(second, text)| {
        if *second != now.as_second() {
            // Only years before 0 have no such form.
            *text = DateTimePrinter::new().timestamp_to_rfc9110_string(&now).unwrap_or_default();
            *second = now.as_second();
        }
        tell(text)
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_date_is_written_as_http_wants_it() {
        super::with(|text| {
            assert_eq!(text.len(), 29, "{text}");
            assert!(text.ends_with(" GMT"), "{text}");
        });
    }
}
