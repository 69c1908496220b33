//! What is wrong with a file that a person wrote, and where.

use std::ops::Range;
use std::path::Path;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

/// Something wrong at a place in a file.
#[derive(Debug)]
pub(crate) struct Problem {
    message: String,
    span: Range<usize>,
    label: String,
    /// An earlier place that matters, with what it is.
    pub(crate) earlier: Option<(Range<usize>, &'static str)>,
}

impl Problem {
    /// A problem with what the place is.
    pub(crate) fn at(
        span: Range<usize>,
        message: impl Into<String>,
        label: impl Into<String>,
    ) -> Self {
        Self {
            message: message.into(),
            span,
            label: label.into(),
            earlier: None,
        }
    }

    /// The message, with the line and a caret under the place.
    pub(crate) fn render(&self, path: &Path, text: &str) -> String {
        let path = path.display().to_string();
        let mut snippet = Snippet::source(text).path(&path).annotation(
            AnnotationKind::Primary
                .span(self.span.clone())
                .label(self.label.as_str()),
        );
        if let Some((span, label)) = &self.earlier {
            snippet = snippet.annotation(AnnotationKind::Context.span(span.clone()).label(*label));
        }
        let report = [Level::ERROR
            .primary_title(self.message.as_str())
            .element(snippet)];
        let rendered = Renderer::plain().render(&report);
        // The caller writes `error:` itself.
        rendered
            .strip_prefix("error: ")
            .map_or(rendered.clone(), str::to_owned)
    }
}
