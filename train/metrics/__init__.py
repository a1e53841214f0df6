"""The metrics that ours is measured against: DreamSim, LipSim, LPIPS, R-LPIPS, SSIM, MS-SSIM, PSNR and l_p."""
