//! The sk_lookup program of one pod: its own instance, with the pod in a map of its own.

use std::os::fd::{AsFd as _, BorrowedFd};

use aya::Ebpf;
use aya::maps::{Array, Map, MapData};
use aya::programs::SkLookup;
use aya::programs::links::FdLink;
use loam_ebpf_common::layout::{self, Entrance};
use serde::Serialize;

use super::object::Object;
use super::{Pins, RedirectError, failed, is_same};
use crate::sys::bpf_link::{self, Attached};

/// Name of the program.
const PROGRAM: &str = "steer";

/// What the kernel has for one pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SteerFacts {
    /// Number of the link; 0 if there is none.
    pub link: u32,
    /// Tag of its program.
    pub tag: String,
    /// It is attached to the pod's network namespace.
    pub attached: bool,
    /// Its program is the one of this build, with the maps that everybody shares.
    pub current: bool,
    /// It knows the pod's index, its addresses and which ports are probed.
    pub configured: bool,
}

impl SteerFacts {
    const NONE: SteerFacts =
        SteerFacts { link: 0, tag: String::new(), attached: false, current: false, configured: false };

    /// Whether everything is as it should be.
    pub fn good(&self) -> bool {
        self.attached && self.current && self.configured
    }
}

/// What all instances have in common.
pub(super) struct Template {
    tag: u64,
    shared: [u32; layout::SHARED.len()],
}

impl Template {
    pub(super) fn new(loaded: &mut Ebpf, shared: [u32; layout::SHARED.len()]) -> Result<Self, RedirectError> {
        let tag = program(loaded)?.info().map_err(failed("look at the steer program"))?.tag();
        Ok(Self { tag, shared })
    }

    /// Makes the pod's link be there: keeps it, or corrects what it knows, or swaps its program, or attaches it.
    pub(super) fn attach(
        &self,
        object: &Object,
        pins: &Pins,
        pod: &Entrance,
        netns: BorrowedFd<'_>,
        inode: u64,
    ) -> Result<SteerFacts, RedirectError> {
        let pin = pins.steer(pod.steered.index());
        let facts = self.look(pins, pod, inode)?;
        if facts.good() {
            return Ok(facts);
        }
        if facts.attached && facts.current {
            self.own_map(pins, pod.steered.index())?
                .ok_or(RedirectError::Missing(layout::STEERED))?
                .set(0, *pod, 0)
                .map_err(|e| RedirectError::Map("write a pod's map", e))?;
            return self.look(pins, pod, inode);
        }
        let mut loaded = object.load()?;
        let own = loaded.map_mut(layout::STEERED).ok_or(RedirectError::Missing(layout::STEERED))?;
        Array::<_, Entrance>::try_from(own)
            .and_then(|mut own| own.set(0, *pod, 0))
            .map_err(|e| RedirectError::Map("write a pod's map", e))?;
        let program = program(&mut loaded)?;
        if facts.attached {
            let fd = program.fd().map_err(failed("find the steer program"))?;
            let link = bpf_link::open(&pin).map_err(|e| RedirectError::Kernel("open a pod's pinned link", e))?;
            bpf_link::update(link.as_fd(), fd.as_fd())
                .map_err(|e| RedirectError::Kernel("swap the program of a pod's link", e))?;
            return self.look(pins, pod, inode);
        }
        let id = program.attach(netns).map_err(failed("attach the steer program"))?;
        let link: FdLink = program.take_link(id).map_err(failed("keep the steer program"))?.into();
        // What is pinned there belongs to a namespace that is gone.
        pins.remove(&pin)?;
        pins.hold(link, pin)?;
        self.look(pins, pod, inode)
    }

    /// What the kernel has under this pod's index.
    pub(super) fn look(&self, pins: &Pins, pod: &Entrance, inode: u64) -> Result<SteerFacts, RedirectError> {
        let Some(info) = pinned(pins, pod.steered.index())? else { return Ok(SteerFacts::NONE) };
        let tag = bpf_link::program(info.program).map_or(0, |program| program.tag);
        // Of the shared maps it uses LISTENERS and PROBES only.
        let current = is_same(info.program, self.tag, &self.shared[1..3], 2);
        let known = match self.own_map(pins, pod.steered.index())? {
            Some(own) => own.get(&0, 0).ok(),
            None => None,
        };
        Ok(SteerFacts {
            link: info.id,
            tag: format!("{tag:016x}"),
            attached: info.attached == Attached::Netns(inode),
            current,
            configured: known == Some(*pod),
        })
    }

    /// The map in which the instance of this index finds its pod.
    fn own_map(&self, pins: &Pins, index: u32) -> Result<Option<Array<MapData, Entrance>>, RedirectError> {
        let Some(info) = pinned(pins, index)? else { return Ok(None) };
        let Ok(program) = bpf_link::program(info.program) else { return Ok(None) };
        let mut own = program.maps.into_iter().filter(|map| !self.shared.contains(map));
        let Some(id) = own.next() else { return Ok(None) };
        let map = MapData::from_id(id).map_err(|e| RedirectError::Map("open a pod's map", e))?;
        // A program of another version may have another map there.
        Ok(Array::try_from(Map::Array(map)).ok())
    }
}

fn pinned(pins: &Pins, index: u32) -> Result<Option<bpf_link::LinkInfo>, RedirectError> {
    let Some(link) = pins.open(&pins.steer(index))? else { return Ok(None) };
    bpf_link::link(link.as_fd()).map(Some).map_err(|e| RedirectError::Kernel("look at a pod's link", e))
}

/// The program, in the kernel.
fn program(loaded: &mut Ebpf) -> Result<&mut SkLookup, RedirectError> {
    let program = loaded.program_mut(PROGRAM).ok_or(RedirectError::Missing(PROGRAM))?;
    let program: &mut SkLookup = program.try_into().map_err(failed("find the steer program"))?;
    if program.fd().is_err() {
        program.load().map_err(failed("load the steer program"))?;
    }
    Ok(program)
}
