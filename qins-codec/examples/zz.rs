use qins_codec::*; use std::time::Instant; use std::arch::asm; use std::hint::black_box;
fn fma()->f64{ let n=20_000u64; let t=Instant::now(); unsafe{asm!("2:",
"vfmadd231ps ymm0,ymm15,ymm15","vfmadd231ps ymm1,ymm15,ymm15","vfmadd231ps ymm2,ymm15,ymm15","vfmadd231ps ymm3,ymm15,ymm15","vfmadd231ps ymm4,ymm15,ymm15","vfmadd231ps ymm5,ymm15,ymm15","vfmadd231ps ymm6,ymm15,ymm15","vfmadd231ps ymm7,ymm15,ymm15","vfmadd231ps ymm8,ymm15,ymm15","vfmadd231ps ymm9,ymm15,ymm15",
"dec {0}","jnz 2b",inout(reg) n=>_,out("ymm0") _,out("ymm1") _,out("ymm2") _,out("ymm3") _,out("ymm4") _,out("ymm5") _,out("ymm6") _,out("ymm7") _,out("ymm8") _,out("ymm9") _,);} n as f64*10.0/t.elapsed().as_secs_f64()/1e9 }
fn main(){ let p=rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap(); p.install(go) }
fn go(){
 let only:Vec<String>=std::env::args().skip(1).collect();
 for &f in Format::ALL { if !only.is_empty() && !only.iter().any(|n| n==f.name()) {continue;}
  for m in [1usize,4,8] {
  let (r,c)=(128,3072); let w:Vec<f32>=(0..r*c).map(|i|((i*7919%1000) as f32/500.0-1.0)).collect();
  let e=encode(f,&Slice::new(&w,r,c)).unwrap(); let x:Vec<f32>=(0..m*c).map(|i|(i as f32).sin()).collect();
  let mut best=1e9f64; let mut ratio=vec![]; let mut peak=0f64;
  for _ in 0..200 { let a=fma(); let t=Instant::now(); for _ in 0..1 {black_box(e.matrix().matmul_at(Level::detected(),&x,m));} let d=t.elapsed().as_secs_f64()/1.0; let b=fma(); peak=peak.max(a); best=best.min(d); if (a/b-1.0).abs()<0.03 {ratio.push(d*(a+b)/2.0*1e9/2.0/((r*c/32) as f64));} }
  ratio.sort_by(f64::total_cmp);
  println!("{:8} m{m} best {:.2} ns/32  peak {:.2} cycles/32 (of FMA peak): median {:.1} p10 {:.1}",f.name(),best*1e9/((r*c/32) as f64),peak,ratio[ratio.len()/2],ratio[ratio.len()/10]);
 }}}
