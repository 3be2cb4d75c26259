//! Arrays in numpy's `.npy` format, versions 1 to 3.

use bytes::Bytes;
use serde_json::json;
use snakepit_proto::value::TypedValue;

const MAGIC: &[u8] = b"\x93NUMPY";

/// The codes of types in the header, with their names and sizes. Numbers are little-endian.
const TYPES: [(&str, &str, usize); 14] = [
    ("b1", "bool", 1),
    ("i1", "int8", 1),
    ("i2", "int16", 2),
    ("i4", "int32", 4),
    ("i8", "int64", 8),
    ("u1", "uint8", 1),
    ("u2", "uint16", 2),
    ("u4", "uint32", 4),
    ("u8", "uint64", 8),
    ("f2", "float16", 2),
    ("f4", "float32", 4),
    ("f8", "float64", 8),
    ("c8", "complex64", 8),
    ("c16", "complex128", 16),
];

/// Converts the content of a file to a value of the type `tensor`.
///
/// # Errors
/// A message that continues a sentence about the file.
pub(super) fn read(content: &[u8]) -> Result<TypedValue, String> {
    let damaged = || "it is not a valid .npy file".to_owned();
    let rest = content.strip_prefix(MAGIC).ok_or_else(damaged)?;
    let (version, rest) = rest.split_at_checked(2).ok_or_else(damaged)?;
    let length_bytes = if version[0] == 1 { 2 } else { 4 };
    let (length, rest) = rest.split_at_checked(length_bytes).ok_or_else(damaged)?;
    let length = length.iter().rev().fold(0, |length, byte| length << 8 | usize::from(*byte));
    let (header, buffer) = rest.split_at_checked(length).ok_or_else(damaged)?;
    let header = std::str::from_utf8(header).map_err(|_| damaged())?;
    let descr = header_value(header, "descr").and_then(|text| text.strip_prefix('\'')?.split('\'').next());
    let descr = descr.ok_or("its elements are records; save plain numbers")?;
    let is_fortran = header_value(header, "fortran_order").ok_or_else(damaged)?.starts_with("True");
    let shape = header_value(header, "shape").and_then(|text| text.strip_prefix('(')?.split(')').next());
    let shape = shape.ok_or_else(damaged)?.split(',').map(str::trim).filter(|axis| !axis.is_empty());
    let shape = shape.map(str::parse::<usize>).collect::<Result<Vec<_>, _>>().map_err(|_| damaged())?;
    let code = descr.strip_prefix(['<', '|', '=']);
    let found = TYPES.iter().find(|(known, ..)| code == Some(*known));
    let &(_, dtype, size) = found.ok_or_else(|| {
        format!("its dtype `{descr}` cannot be sent; save little-endian numbers, such as `<f4`")
    })?;
    if is_fortran && shape.len() > 1 {
        return Err("it has Fortran order; save numpy.ascontiguousarray(array)".to_owned());
    }
    let expected = shape.iter().try_fold(size, |bytes, axis| bytes.checked_mul(*axis)).ok_or_else(damaged)?;
    if buffer.len() != expected {
        return Err(format!("it has {} bytes of data, and its shape needs {expected}", buffer.len()));
    }
    let metadata = json!({"type": "tensor", "shape": shape, "dtype": dtype, "binary_format": "raw"});
    Ok(TypedValue {
        type_name: "tensor".into(),
        json: metadata.to_string().into(),
        binary: Some(Bytes::copy_from_slice(buffer)),
    })
}

/// Returns the text from the value of a key on. The header is a literal of a Python dict.
fn header_value<'a>(header: &'a str, key: &str) -> Option<&'a str> {
    let (_, rest) = header.split_once(&format!("'{key}':"))?;
    Some(rest.trim_start())
}

/// Creates the content of a file, version 1. Returns `None` for a type without a code.
pub(super) fn write(shape: &[u64], dtype: &str, buffer: &[u8]) -> Option<Vec<u8>> {
    let &(code, _, size) = TYPES.iter().find(|(_, name, _)| *name == dtype)?;
    let order = if size == 1 { '|' } else { '<' };
    let axes: String = shape.iter().map(|axis| format!("{axis}, ")).collect();
    let mut header =
        format!("{{'descr': '{order}{code}', 'fortran_order': False, 'shape': ({}), }}", axes.trim_end());
    // The data start at a multiple of 64 bytes, after a newline.
    let used = MAGIC.len() + 4 + header.len() + 1;
    header.push_str(&" ".repeat(used.next_multiple_of(64) - used));
    header.push('\n');
    let mut content = [MAGIC, &[1, 0]].concat();
    content.extend_from_slice(&u16::try_from(header.len()).ok()?.to_le_bytes());
    content.extend_from_slice(header.as_bytes());
    content.extend_from_slice(buffer);
    Some(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_survive_a_round_trip() {
        for (shape, dtype, size) in
            [(&[2, 3][..], "float32", 24), (&[], "int64", 8), (&[4], "bool", 4), (&[0, 7], "complex128", 0)]
        {
            let buffer: Vec<u8> = (0..size).collect();
            let content = write(shape, dtype, &buffer).unwrap();
            assert_eq!((content.len() - buffer.len()) % 64, 0);
            let value = read(&content).unwrap();
            assert_eq!(value.binary.as_deref(), Some(&*buffer));
            let metadata: serde_json::Value = serde_json::from_slice(&value.json).unwrap();
            assert_eq!((&metadata["dtype"], &metadata["shape"]), (&json!(dtype), &json!(shape)));
        }
        assert_eq!(write(&[1], "object", &[0]), None);
    }

    #[test]
    fn files_that_cannot_be_sent_are_rejected() {
        let with = |header: &str| {
            let mut content = [MAGIC, &[1, 0], &(header.len() as u16).to_le_bytes()].concat();
            content.extend_from_slice(header.as_bytes());
            read(&content).unwrap_err()
        };
        for (header, expected) in [
            ("{'descr': '>f8', 'fortran_order': False, 'shape': (0,), }", "dtype `>f8`"),
            ("{'descr': '|O', 'fortran_order': False, 'shape': (0,), }", "dtype `|O`"),
            ("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (0,), }", "records"),
            ("{'descr': '<f4', 'fortran_order': True, 'shape': (0, 1), }", "Fortran order"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", "its shape needs 8"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 99999999999), }", "valid .npy"),
            ("{}", "records"),
        ] {
            let problem = with(header);
            assert!(problem.contains(expected), "{header}: {problem}");
        }
        for content in [&b""[..], b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff\xff{", b"text"] {
            assert!(read(content).unwrap_err().contains("valid .npy"));
        }
    }
}
