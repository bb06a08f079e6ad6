//! Setters of options: so that a field can be added without breaking callers, who cannot write such a
//! struct down whole.

/// Gives a struct of options a method for each field, which replaces that field. Those of `into` take
/// whatever becomes the field's type: for an optional one the value itself, or an `Option`.
macro_rules! setters {
    ($options:ident {
        $($field:ident: $type:ty),* $(,)?
    } into {
        $($into:ident: $target:ty),* $(,)?
    }) => {
        impl $options {
            $(
                #[doc = concat!("Replaces [`", stringify!($field), "`](field@Self::", stringify!($field), ").")]
                #[must_use]
                pub fn $field(self, $field: $type) -> Self {
                    Self { $field, ..self }
                }
            )*
            $(
                #[doc = concat!("Replaces [`", stringify!($into), "`](field@Self::", stringify!($into), ").")]
                #[must_use]
                pub fn $into(self, $into: impl Into<$target>) -> Self {
                    Self { $into: $into.into(), ..self }
                }
            )*
        }
    };
}

pub(crate) use setters;
