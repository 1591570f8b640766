//! Definition macros: one source for the Rust type, its layout assertions and the C header.

/// Defines an enumeration of ABI numbers with a checked decoder and a list for generators.
macro_rules! numbers {
    (
        $(#[doc = $edoc:literal])*
        pub enum $name:ident: $repr:ty {
            $( $(#[doc = $doc:literal])* $variant:ident = $value:expr, )*
        }
    ) => {
        $(#[doc = $edoc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr($repr)]
        pub enum $name { $( $(#[doc = $doc])* $variant = $value, )* }

        impl $name {
            /// Every value, in ascending order of definition.
            pub const ALL: &'static [Self] = &[$( Self::$variant, )*];
            /// Names, values and documentation, for generated headers.
            #[allow(clippy::as_conversions, reason = "widening of a literal, in a constant")]
            pub const CONSTANTS: &'static [$crate::Constant] = &[$( $crate::Constant {
                name: stringify!($variant),
                value: ($value) as i64,
                docs: &[$($doc),*],
            }, )*];

            /// Decodes `raw`, or returns `None` where the ABI defines no such number.
            pub const fn from_raw(raw: $repr) -> Option<Self> {
                match raw {
                    $( value if value == $value => Some(Self::$variant), )*
                    _ => None,
                }
            }

            /// Returns the number that crosses the ABI.
            #[allow(clippy::as_conversions, reason = "the definition of the representation")]
            pub const fn raw(self) -> $repr {
                self as $repr
            }

            /// Returns the variant's name.
            pub const fn name(self) -> &'static str {
                match self { $( Self::$variant => stringify!($variant), )* }
            }
        }
    };
}

/// Defines a set of ABI bits: unknown bits are refused by `from_raw`.
macro_rules! bits {
    (
        $(#[doc = $sdoc:literal])*
        pub struct $name:ident: $repr:ty {
            $( $(#[doc = $doc:literal])* $bit:ident = $shift:literal, )*
        }
    ) => {
        $(#[doc = $sdoc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name($repr);

        impl $name {
            $( $(#[doc = $doc])* pub const $bit: Self = Self(1 << $shift); )*
            /// No bit.
            pub const NONE: Self = Self(0);
            /// Every defined bit.
            pub const ALL: Self = Self(0 $( | (1 << $shift) )*);
            /// Names, values and documentation, for generated headers.
            pub const CONSTANTS: &'static [$crate::Constant] = &[$( $crate::Constant {
                name: stringify!($bit),
                value: 1 << $shift,
                docs: &[$($doc),*],
            }, )*];

            /// Decodes `raw`, or returns `None` where a bit is set that the ABI does not define.
            pub const fn from_raw(raw: $repr) -> Option<Self> {
                if raw & !Self::ALL.0 == 0 { Some(Self(raw)) } else { None }
            }
            /// Returns the number that crosses the ABI.
            pub const fn raw(self) -> $repr {
                self.0
            }
            /// Returns whether every bit of `other` is set.
            pub const fn contains(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }
            /// Returns whether any bit of `other` is set.
            pub const fn intersects(self, other: Self) -> bool {
                self.0 & other.0 != 0
            }
            /// Returns the union of both sets.
            pub const fn with(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }
            /// Returns this set without the bits of `other`.
            pub const fn without(self, other: Self) -> Self {
                Self(self.0 & !other.0)
            }
            /// Returns whether no bit is set.
            pub const fn is_empty(self) -> bool {
                self.0 == 0
            }
        }
    };
}

/// Defines a wire structure: `repr(C)`, zerocopy derives, asserted size, no padding.
macro_rules! wire {
    (
        $(#[doc = $sdoc:literal])*
        pub struct $name:ident[$size:literal] {
            $( $(#[doc = $doc:literal])* pub $field:ident: $ty:ty, )*
        }
    ) => {
        $(#[doc = $sdoc])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq,
            zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout,
        )]
        #[repr(C)]
        pub struct $name { $( $(#[doc = $doc])* pub $field: $ty, )* }

        static_assertions::const_assert_eq!(size_of::<$name>(), $size);

        impl $name {
            /// All fields zero.
            pub const fn zeroed() -> Self {
                zerocopy::transmute!([0u8; $size])
            }
        }

        impl $crate::Wire for $name {
            const NAME: &'static str = stringify!($name);
            const SIZE: usize = $size;
            const DOCS: &'static [&'static str] = &[$($sdoc),*];
            const FIELDS: &'static [$crate::Field] = &[$( $crate::Field {
                name: stringify!($field),
                rust_type: stringify!($ty),
                offset: core::mem::offset_of!($name, $field),
                size: size_of::<$ty>(),
                docs: &[$($doc),*],
            }, )*];
        }
    };
}
