//! What was wrong with a form, field by field.

use docklet_types::problem::Problem;

/// One field's error. An empty field means the form as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    pub field: String,
    pub message: String,
}

/// The errors of one form.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Errors(pub Vec<FieldError>);

impl Errors {
    #[must_use]
    pub const fn none() -> Self {
        Self(Vec::new())
    }

    #[must_use]
    pub fn one(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self(vec![FieldError { field: field.into(), message: message.into() }])
    }

    /// A problem of the API as it looks in a form: `size.cpu` becomes the field `cpu`.
    #[must_use]
    pub fn from_problem(problem: &Problem) -> Self {
        let field = problem.field.as_deref().unwrap_or_default();
        Self::one(field.rsplit('.').next().unwrap_or_default(), problem.detail.clone())
    }

    /// The message beside a field.
    #[must_use]
    pub fn of(&self, field: &str) -> Option<&str> {
        self.0.iter().find(|e| e.field == field).map(|e| e.message.as_str())
    }

    /// The messages that no field of `fields` shows.
    #[must_use]
    pub fn general(&self, fields: &[&str]) -> Vec<&str> {
        self.0.iter().filter(|e| !fields.contains(&e.field.as_str())).map(|e| e.message.as_str()).collect()
    }

    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
