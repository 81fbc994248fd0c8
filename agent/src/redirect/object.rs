//! The object of the kernel programs, as it was built, inside this executable.

use std::sync::Mutex;

use aya::{Ebpf, EbpfError, EbpfLoader};
use loam_ebpf_common::layout;

use super::{Pins, RedirectError};

/// The object must be aligned like the words in it.
#[repr(C, align(8))]
struct Aligned<Bytes: ?Sized>(Bytes);

static BYTES: &Aligned<[u8]> = &Aligned(*include_bytes!("../../../ebpf/prebuilt/loam.o"));

/// Makes instances of the programs that share the pinned maps.
pub(super) struct Object {
    /// Kept, because making one reads and parses the kernel's type information: 15 ms, more than all the rest.
    loader: Mutex<EbpfLoader<'static>>,
}

impl Object {
    pub(super) fn new(pins: &Pins) -> Result<Self, RedirectError> {
        let mut loader = EbpfLoader::new();
        // The programs name no types of the kernel, so its type information is not needed any further.
        loader.btf(None);
        for name in layout::SHARED {
            loader.map_pin_path(name, pins.map(name));
        }
        Ok(Self { loader: Mutex::new(loader) })
    }

    /// A new instance: the shared maps, and a map of its own for the pod that it steers.
    pub(super) fn load(&self) -> Result<Ebpf, RedirectError> {
        let mut loader = self.loader.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        loader.load(&BYTES.0).map_err(|error| match not_permitted(&error) {
            true => RedirectError::NotPermitted,
            false => RedirectError::Load(error),
        })
    }
}

fn not_permitted(error: &EbpfError) -> bool {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::PermissionDenied) {
            return true;
        }
        cause = error.source();
    }
    false
}
